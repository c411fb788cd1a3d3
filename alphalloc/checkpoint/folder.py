"""Which of a folder's files are the model: the same choice for a local folder and for a repository's list of names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alphalloc.checkpoint.adapter import ADAPTER_FILES
from alphalloc.checkpoint.files import inside, read_json_object
from alphalloc.checkpoint.meta import lone_rank, rank_files
from alphalloc.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)

CONFIG_NAME = "config.json"
MAX_SHARDS = 10_000
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.[a-z]+)")
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|rng_state.*|scaler|adapter_model|consolidated.*|tf_model|flax_model)\.\w+"
)


@dataclass(frozen=True)
class Choice:
    """The files to read (or the index that names them), their format, and what was passed over.

    ``layout`` is "meta" for the files of an original release, "adapter" for those of a PEFT adapter, else "".
    """

    format: str
    files: tuple[str, ...]
    index: str = ""
    notes: tuple[str, ...] = ()
    layout: str = ""


def choose(where: str, names: Iterable[str]) -> Choice:
    """Return what to read of the files ``names``: safetensors before PyTorch files before GGUF before Meta's layout.

    A folder without a model may hold an adapter. Raises CheckpointNotFoundError when there are no weights, incomplete
    shards without index, or several models, CorruptCheckpointError for a gap in Meta's ranks.
    """
    top = sorted(name for name in names if "/" not in name)
    for suffix, kind in _FORMATS:
        choice = _of_format(where, top, suffix, kind)
        if choice is not None:
            others = sorted({other for end, other in _FORMATS if other != kind and _weights(top, end)})
            others += ["consolidated"] if _consolidated(where, top) else []
            note = f"{where} also holds {' and '.join(others)} weights; the {kind} ones are read"
            return replace(choice, notes=(note,) if others else ())
    original = _consolidated(where, top)
    if original is not None:
        return original
    adapter = next((name for name in ADAPTER_FILES if name in top), None)
    if adapter is not None:
        return Choice("safetensors" if adapter.endswith(".safetensors") else "torch", (adapter,), layout="adapter")
    listed = ", ".join(top[:8]) or "nothing"
    raise CheckpointNotFoundError(f"{where}: expected .safetensors, pytorch_model*.bin or .gguf files, found {listed}")


_FORMATS = ((".safetensors", "safetensors"), (".bin", "torch"), (".pt", "torch"), (".pth", "torch"), (".gguf", "gguf"))


def _consolidated(where: str, names: Sequence[str]) -> Choice | None:
    """Meta's ranks, or Mistral's single file with the same names in it."""
    if "consolidated.safetensors" in names:
        return Choice("safetensors", ("consolidated.safetensors",), layout="meta")
    ranks = rank_files(where, names)
    if ranks:
        return Choice("torch", ranks, layout="meta")
    return Choice("torch", ("consolidated.pth",), layout="meta") if "consolidated.pth" in names else None


def index_shards(path: Path) -> tuple[str, ...]:
    """Return the shard names that an ``*.index.json`` lists, sorted; CorruptCheckpointError when it is not one."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptCheckpointError(f"{path}: expected a weight_map from tensor names to file names")
    shards = tuple(sorted(set(weight_map.values())))
    if len(shards) > MAX_SHARDS:
        raise CorruptCheckpointError(f"{path}: expected at most {MAX_SHARDS} shards, found {len(shards)}")
    return shards


def index_names(path: Path) -> dict[str, str]:
    """Return the index's map from tensor name to shard."""
    weight_map: dict[str, str] = read_json_object(path)["weight_map"]
    return weight_map


def names_in(folder: Path) -> list[str]:
    """Return the names that lie directly in ``folder``; CheckpointError when the system refuses to list them."""
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError as exc:
        raise CheckpointError(f"{folder}: cannot be listed: {exc.strerror or exc}") from exc


def shard_paths(folder: Path, choice: Choice) -> list[Path]:
    """Return the paths of the chosen files, each checked to exist and to lie inside ``folder``."""
    names = index_shards(inside(folder, choice.index)) if choice.index else choice.files
    return [inside(folder, name) for name in names]


def refuse_lone_shard(path: Path) -> None:
    """Raise when ``path`` is one part of several: a part of the layers would pass for the model."""
    other = lone_rank(path)
    if other:
        raise UnsupportedCheckpointError(f"{path}: is one rank of a model, {other} another; give the folder")
    match = _SHARD.fullmatch(path.name)
    if match and int(match[3]) > 1:
        advice = "merge the parts with llama-gguf-split --merge" if match[4] == ".gguf" else "give the folder"
        raise UnsupportedCheckpointError(f"{path}: is part {int(match[2])} of {int(match[3])} of a model; {advice}")


def _of_format(where: str, names: Sequence[str], suffix: str, kind: str) -> Choice | None:
    stem = {"safetensors": "model", "torch": "pytorch_model"}.get(kind, "")
    if f"{stem}{suffix}" in names:
        return Choice(kind, (f"{stem}{suffix}",))
    if f"{stem}{suffix}.index.json" in names:
        return Choice(kind, (), f"{stem}{suffix}.index.json")
    found = _weights(names, suffix)
    indexes = [name for name in names if name.endswith(f"{suffix}.index.json")]
    if len(indexes) == 1:
        return Choice(kind, (), indexes[0])
    if not found:
        return None
    parts = [_SHARD.fullmatch(name) for name in found]
    if all(parts) and kind != "gguf":
        return Choice(kind, _complete(where, [part for part in parts if part]))
    if len(found) > 1:
        listed = ", ".join(found[:8])
        raise CheckpointNotFoundError(f"{where}: holds several {suffix} files; give the path of one: {listed}")
    return Choice(kind, tuple(found))


def _weights(names: Sequence[str], suffix: str) -> list[str]:
    return [name for name in names if name.endswith(suffix) and not _NOT_WEIGHTS.fullmatch(name)]


def _complete(where: str, parts: Sequence[re.Match[str]]) -> tuple[str, ...]:
    stems = {(part[1], part[3]) for part in parts}
    total = int(parts[0][3])
    missing = sorted(set(range(1, total + 1)) - {int(part[2]) for part in parts}) if total <= MAX_SHARDS else [0]
    if len(stems) != 1 or missing:
        raise CheckpointNotFoundError(f"{where}: shards without an index; expected all {total}, missing {missing[:5]}")
    return tuple(sorted(part[0] for part in parts))
