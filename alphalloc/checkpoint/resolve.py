"""open_checkpoint(): a path, a hub id, a module or a state dict becomes a Checkpoint, from headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from alphalloc.checkpoint import fused, gguf, hub, in_memory, remote, safetensors, torch_file
from alphalloc.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_FILES, low_rank_tensors
from alphalloc.checkpoint.difference import minus_base
from alphalloc.checkpoint.experts import split_experts
from alphalloc.checkpoint.files import file_size, inside, read_json_object
from alphalloc.checkpoint.folder import (
    CONFIG_NAME,
    Choice,
    choose,
    index_names,
    names_in,
    refuse_lone_shard,
    shard_paths,
)
from alphalloc.checkpoint.fused import mark_conv1d
from alphalloc.checkpoint.matrices import Checkpoint, SkippedTensor, StoredTensor, fingerprint
from alphalloc.checkpoint.meta import PARAMS_NAME, is_meta, join_ranks, meta_path
from alphalloc.checkpoint.naming import gguf_path, module_path
from alphalloc.checkpoint.quantization import refuse_quantized
from alphalloc.checkpoint.selection import Options, select
from alphalloc.checkpoint.unpack import unpack
from alphalloc.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RevisionNotFoundError,
    UnsupportedCheckpointError,
)

_SUFFIXES = {".safetensors": "safetensors", ".bin": "torch", ".pt": "torch", ".pth": "torch", ".gguf": "gguf"}


def open_checkpoint(
    model: Any,
    *,
    revision: str | None = None,
    layer_pattern: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    embeddings: bool = False,
    split_fused: bool = True,
    base: Any = None,
    headers_only: bool = False,
) -> Checkpoint:
    """Return the Checkpoint of ``model``: its weight matrices with their places, and what is left out and why.

    ``model`` is a ``.safetensors``, ``.gguf`` or PyTorch file, a folder in Hugging Face's layout (single or sharded),
    a hub id, an ``nn.Module`` or a state dict. An existing path wins over a hub id of the same spelling. No tensor is
    read before ``WeightMatrix.load()``, and no model is instantiated.

    revision: branch, tag or commit of a hub id, pinned to its commit; the hub's default branch when None.
    layer_pattern: overrides how the block index is found, as literal text with ``{}`` for it ("encoder.block.{}.") or
        as a regular expression with one group (or groups named ``layer`` and ``stack``) on the module path.
    include, exclude: globs on tensor name, module path or role; without ``include`` all are taken.
    headers_only: of a hub id that is not in the cache read the headers over the network and download nothing; its
        matrices cannot be loaded then.
    embeddings: also take the matrices outside the blocks (embeddings, lm_head, pooler, classifier), as layer -1.
    split_fused: take q, k and v, and gate and up, apart where they are stored as one ("<tensor>[q_proj]"); False keeps
        them together. Experts stored as one tensor are taken apart in any case ("<tensor>[3]").
    base: another model of the same shapes (anything that ``model`` can be); every matrix is then the difference of the
        two, in float64.

    A folder with a LoRA adapter gives one matrix a pair of factors, scale · B A; its ``load`` returns a value with the
    slices of an array and the factors ``left`` and ``right``.

    Raises the classes below CheckpointError for what cannot be read, NothingToAnalyzeError for a glob that matches
    nothing and when no matrix is left.
    """
    if base is not None:
        same: dict[str, Any] = {"layer_pattern": layer_pattern, "include": _globs(include), "exclude": _globs(exclude)}
        same |= {"embeddings": embeddings, "split_fused": split_fused, "headers_only": headers_only}
        return minus_base(open_checkpoint(model, revision=revision, **same), open_checkpoint(base, **same))
    options = Options(layer_pattern, _globs(include), _globs(exclude), embeddings, split_fused)
    if in_memory.is_module(model) or isinstance(model, Mapping):
        _no_revision(revision, "a model in memory")
        return _assemble(_in_memory(model), options)
    if not isinstance(model, str | os.PathLike):
        raise CheckpointNotFoundError(
            f"expected a path, a hub id, an nn.Module or a state dict, found {type(model).__name__}"
        )
    text = os.fspath(model)
    path = Path(os.path.expanduser(text)) if isinstance(text, str) and text else None
    if path is not None and _exists(path):
        _no_revision(revision, f"the local path {path}")
        return _assemble(_local(path.absolute(), text), options)
    if path is None or not isinstance(model, str) or _looks_like_path(text) or not hub.is_model_id(text):
        raise CheckpointNotFoundError(f"{str(text)[:200]!r}: no such path, and not a hub model id; check the spelling")
    assemble = partial(_from_snapshot, text, revision, options)
    return remote.open_headers(text, revision, assemble) if headers_only else assemble(hub.fetch(text, revision))


def _from_snapshot(model_id: str, revision: str | None, options: Options, snapshot: hub.Snapshot) -> Checkpoint:
    source = _local(snapshot.folder, model_id, snapshot.commit, revision)
    return _assemble(replace(source, notes=source.notes + snapshot.notes), options)


@dataclass(frozen=True)
class _Source:
    """What was found before places are given: tensors, config, and where they came from."""

    model_id: str
    format: str
    tensors: list[StoredTensor]
    config: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    revision: str | None = None
    commit: str | None = None
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    spell: Callable[[str], str] = module_path


def _assemble(source: _Source, options: Options) -> Checkpoint:
    stored = source.tensors
    companions: list[SkippedTensor] = []
    if source.format != "gguf":
        stored, companions = unpack(source.tensors, source.config)
        refuse_quantized(source.model_id, stored, source.config)
    tensors, notes = _taken_apart(replace(source, tensors=stored), options.split_fused)
    matrices, skipped = select(tensors, source.config, options, source.spell)
    return Checkpoint(
        model_id=source.model_id,
        revision=source.revision,
        commit=source.commit,
        fingerprint=fingerprint(source.tensors, [file_size(path) for path in source.files]),
        format=source.format,
        architecture=source.architecture or _architecture(source.config),
        quantized=any(matrix.quantized for matrix in matrices),
        matrices=matrices,
        skipped=(*skipped, *companions),
        files=source.files,
        notes=source.notes + notes,
    )


def _taken_apart(source: _Source, split: bool) -> tuple[list[StoredTensor], tuple[str, ...]]:
    """Fused experts one by one, fused projections in their parts where ``split``."""
    tensors = mark_conv1d(source.tensors, source.spell)
    tensors = split_experts(tensors, source.config, source.spell, split_fused=split)
    return fused.split_fused(tensors, source.config, source.spell) if split else (tensors, ())


def _in_memory(model: Any) -> _Source:
    if isinstance(model, Mapping):
        return _Source("state dict", "memory", in_memory.state_dict_tensors(model), {})
    config = in_memory.module_config(model)
    return _Source(type(model).__name__, "memory", in_memory.module_tensors(model), config)


def _local(path: Path, model_id: str, commit: str | None = None, revision: str | None = None) -> _Source:
    if path.is_dir():
        choice = choose(str(path) if commit is None else model_id, names_in(path))
        paths = shard_paths(path, choice)
        folder = path
    else:
        kind = _format_of(path)
        choice, paths, folder = Choice(kind, (path.name,)), [path], path.parent
    config = _json_of(folder, CONFIG_NAME) if choice.format != "gguf" else {}
    source = partial(
        _Source, model_id, choice.format, files=tuple(paths), revision=revision, commit=commit, notes=choice.notes
    )
    if choice.format == "gguf":
        header = gguf.read_header(paths[0])
        architecture = header.metadata.get("general.architecture")
        name = architecture if isinstance(architecture, str) else None
        spell = partial(gguf_path, architecture=name or "")
        config = gguf.config_of(header.metadata)
        return source(tensors=list(header.tensors), config=config, architecture=name, spell=spell)
    read = safetensors.read_headers if choice.format == "safetensors" else torch_file.read_headers
    if choice.layout == "meta" or paths[0].name.startswith("consolidated"):
        params = _json_of(folder, PARAMS_NAME)
        tensors = join_ranks(folder, [read(shard) for shard in paths], params)
        return source(tensors=tensors, config=config, spell=meta_path if is_meta(tensors) else module_path)
    tensors = [tensor for shard in paths for tensor in read(shard)]
    _check_shards(path, choice, tensors)
    if choice.layout == "adapter" or paths[0].name in ADAPTER_FILES:
        facts = _json_of(folder, ADAPTER_CONFIG)
        return source(tensors=low_rank_tensors(folder, tensors, facts), config=config, architecture="LoRA")
    return source(tensors=tensors, config=config)


def _check_shards(folder: Path, choice: Choice, tensors: list[StoredTensor]) -> None:
    """No tensor twice, and every tensor where the index says it is."""
    where = {tensor.name: os.path.basename(tensor.source) for tensor in tensors}
    if len(where) != len(tensors):
        twice = Counter(tensor.name for tensor in tensors).most_common(1)[0][0]
        raise CorruptCheckpointError(f"{folder}: tensor {twice[:200]!r} stands in two shards; it is not read")
    if choice.index:
        for name, shard in index_names(folder / choice.index).items():
            if where.get(name) != Path(shard).name:
                raise CorruptCheckpointError(
                    f"{folder / choice.index}: puts tensor {name[:200]!r} into {shard!r}, which does not hold it"
                )


def _json_of(folder: Path, name: str) -> Mapping[str, Any]:
    """The JSON object ``name`` of ``folder``; {} when there is no such file."""
    return read_json_object(inside(folder, name)) if os.path.lexists(folder / name) else {}


def _architecture(config: Mapping[str, Any]) -> str | None:
    listed = config.get("architectures")
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return listed[0]
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else None


def _format_of(path: Path) -> str:
    """The format of a single file, by its suffix, else by its first bytes."""
    refuse_lone_shard(path)
    file_size(path)  # a clean error for anything but a regular file
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    with path.open("rb") as stream:
        head = stream.read(9)
    if head[:4] in (b"GGUF", b"PK\x03\x04"):
        return "gguf" if head[:4] == b"GGUF" else "torch"
    if head[8:9] == b"{":
        return "safetensors"
    raise UnsupportedCheckpointError(f"{path}: expected a .safetensors, .gguf or PyTorch file, found another format")


def _exists(path: Path) -> bool:
    """Whether something lies at ``path``, a broken or looping link included."""
    try:
        os.lstat(path)
    except PermissionError as exc:
        raise CheckpointError(f"{path}: cannot be opened: {exc.strerror}") from exc
    except (OSError, ValueError):  # ValueError: characters that no path can have
        return False
    return True


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "\\" in text or Path(text).suffix in _SUFFIXES


def _no_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise RevisionNotFoundError(f"revision {revision!r} was given for {what}; only hub ids have revisions")


def _globs(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
