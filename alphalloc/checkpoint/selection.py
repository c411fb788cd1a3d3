"""From stored tensors to the matrices to analyse: everything left out is listed with its reason."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from alphalloc.checkpoint.buffers import Transposed
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, SkippedTensor, StoredTensor, WeightMatrix
from alphalloc.checkpoint.naming import Place, find_places, module_path, not_a_linear
from alphalloc.errors import NothingToAnalyzeError, UnknownArchitectureError

MAX_SIDE = 262_144  # chosen here: no block matrix of a published model comes near either bound
MAX_ELEMENTS = 2**31
_NEAR_WORDS = 2000  # looking for near matches takes about a second for these
_HEADS = ("lm_head", "embed_out", "output")
_OUTSIDE = "outside the repeated blocks (embedding, head or pooler)"


class _Unexpected(str):
    """A reason to leave out what one would expect to be analysed."""

    __slots__ = ()


@dataclass(frozen=True)
class Options:
    """What the caller chose: a block pattern, globs on name, module or role, embeddings or not, fused taken apart."""

    layer_pattern: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    split_fused: bool = True


def select(
    tensors: Sequence[StoredTensor],
    config: Mapping[str, Any],
    options: Options,
    spell: Callable[[str], str] = module_path,
) -> tuple[tuple[WeightMatrix, ...], tuple[SkippedTensor, ...]]:
    """Return the matrices to analyse, sorted by stack (encoder, decoder, others by name), layer and name, and the rest.

    ``spell`` turns a tensor name into a module path. Left out: tensors that are not two-dimensional, hold no
    floating-point numbers, are empty, larger than 262,144 on a side or 2^31 in all, belong to an adapter, repeat
    another tensor's bytes, lie outside the repeated blocks (unless ``options.embeddings``), or are filtered.

    Raises UnknownArchitectureError without matrices or repeated blocks, NothingToAnalyzeError for a glob that matches
    nothing and when nothing is left.
    """
    reasons = {tensor.name: _not_a_matrix(tensor) for tensor in tensors}
    candidates = [tensor for tensor in tensors if not reasons[tensor.name]]
    if not candidates:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        raise UnknownArchitectureError(f"expected weight matrices, found none among {len(tensors)} tensors ({listed})")
    paths = {tensor.name: tensor.place or spell(tensor.name) for tensor in candidates}
    places = find_places(paths, options.layer_pattern)
    for tensor in candidates:
        if tensor.module:  # a part of a fused tensor: its block and role are its own, its module that of the whole
            places[tensor.name] = replace(places[tensor.name], module=tensor.module)
    reasons |= _repeated(candidates, places, config)
    for tensor in candidates:
        if places[tensor.name].layer < 0 and not options.embeddings:
            reasons[tensor.name] = reasons[tensor.name] or _OUTSIDE
        elif places[tensor.name].layer >= 0 and tensor.kind == "embedding":
            reasons[tensor.name] = reasons[tensor.name] or "embedding inside a block"
    _distinguish_outside(places)
    _filter(reasons, places, options)
    matrices = [_matrix(t, places[t.name], t.kind == "conv1d") for t in candidates if not reasons[t.name]]
    if not matrices:
        raise NothingToAnalyzeError(
            f"expected matrices to analyse, but all {len(tensors)} tensors are left out; loosen include and exclude"
        )
    skipped = tuple(
        SkippedTensor(t.name, t.shape, str(reasons[t.name]), not isinstance(reasons[t.name], _Unexpected))
        for t in tensors
        if reasons[t.name]
    )
    return tuple(sorted(matrices, key=_order)), skipped


def _not_a_matrix(tensor: StoredTensor) -> str:
    """Why the tensor's own shape, dtype or name rule it out; "" when they do not."""
    dims = len(tensor.shape)
    if tensor.dtype not in FLOAT_DTYPES and not tensor.quantized:
        return f"{tensor.dtype}: a buffer or mask, not weights"
    if dims == 0:
        return "scalar"
    if dims == 1:
        return "1-D (bias or norm)"
    if dims > 2:
        known = dims > 3 or "conv" in tensor.name or not _in_block(tensor.name)
        reason = f"{dims}-D (convolution, or experts fused in an unknown way): only matrices are analysed"
        return reason if known else _Unexpected(reason)
    if not prod(tensor.shape):
        return _Unexpected("empty")
    if max(tensor.shape) > MAX_SIDE or prod(tensor.shape) > MAX_ELEMENTS:
        reason = f"larger than {MAX_SIDE} on a side or {MAX_ELEMENTS} numbers"
        return _Unexpected(reason) if _in_block(tensor.name) else reason
    return not_a_linear(tensor.name) if tensor.kind != "conv1d" and _in_block(tensor.name) else _adapter(tensor.name)


def _in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _adapter(name: str) -> str:
    reason = not_a_linear(name)
    return reason if "adapter" in reason or "bias" in reason else ""


def _repeated(
    candidates: Sequence[StoredTensor], places: Mapping[str, Place], config: Mapping[str, Any]
) -> dict[str, str]:
    """Reasons for tensors that repeat another: the same bytes, or head and embedding tied by config.json."""
    reasons: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for tensor in sorted(candidates, key=lambda t: places[t.name].layer < 0):
        if tensor.storage is not None and first.setdefault(tensor.storage, tensor.name) != tensor.name:
            reasons[tensor.name] = f"tied to {first[tensor.storage]}, counted once"
    if _tied_in_config(config):
        outside = [t for t in candidates if places[t.name].layer < 0]
        heads = [t for t in outside if places[t.name].role in _HEADS]
        for head in heads:
            twin = next((t for t in outside if t not in heads and t.shape == head.shape), None)
            if twin is not None:
                reasons.setdefault(head.name, f"tied to {twin.name} (config.json: tie_word_embeddings), counted once")
    return reasons


def _tied_in_config(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    holders = [config, text] if isinstance(text, Mapping) else [config]
    return any(holder.get("tie_word_embeddings") is True for holder in holders)


def _distinguish_outside(places: dict[str, Place]) -> None:
    """Outside the blocks the last name is the role too, unless two share it: then the whole module path."""
    outside = {name: place for name, place in places.items() if place.layer < 0}
    roles = Counter(place.role for place in outside.values())
    for name, place in outside.items():
        if roles[place.role] > 1:
            places[name] = replace(place, role=place.module)


def _filter(reasons: dict[str, str], places: Mapping[str, Place], options: Options) -> None:
    """Add the reasons that the globs give; a glob that matches no matrix is an error."""
    chosen = [name for name in places if not reasons[name]]
    for kind, globs in (("include", options.include), ("exclude", options.exclude)):
        for glob in globs:
            if not any(_matches(name, places[name], glob) for name in chosen):
                raise NothingToAnalyzeError(_no_match(kind, glob, chosen, places, reasons))
    for name in chosen:
        if options.include and not any(_matches(name, places[name], glob) for glob in options.include):
            reasons[name] = "not included by " + ", ".join(map(repr, options.include))
        hit = next((glob for glob in options.exclude if _matches(name, places[name], glob)), None)
        if hit is not None:
            reasons[name] = f"excluded by {hit!r}"


def _matches(name: str, place: Place, glob: str) -> bool:
    return any(fnmatchcase(text, glob) for text in (name, name.partition("[")[0], place.module, place.role))


def _no_match(
    kind: str, glob: str, chosen: Sequence[str], places: Mapping[str, Place], reasons: Mapping[str, str]
) -> str:
    left_out = [
        name for name, why in reasons.items()
        if why and (fnmatchcase(name, glob) or (name in places and _matches(name, places[name], glob)))
    ]  # fmt: skip
    if left_out:
        return f"{kind} {glob!r} matches only what is left out: {left_out[0]} ({reasons[left_out[0]]})"
    words = dict.fromkeys(text for name in chosen for text in (places[name].role, name, places[name].module))
    near = difflib.get_close_matches(glob.strip("*."), list(words)[:_NEAR_WORDS], n=3, cutoff=0.4) or list(words)[:3]
    return f"{kind} {glob!r} matches no matrix by name, module or role; near ones: {', '.join(near)}"


def _matrix(tensor: StoredTensor, place: Place, turned: bool) -> WeightMatrix:
    rows, cols = tensor.shape
    return WeightMatrix(
        name=tensor.name,
        module=place.module,
        layer=place.layer,
        stack=place.stack,
        role=place.role,
        shape=(cols, rows) if turned else (rows, cols),
        dtype=tensor.dtype,
        nbytes=tensor.nbytes,
        quantized=tensor.quantized,
        source=tensor.source,
        load=Transposed(tensor.load) if turned else tensor.load,
        offset=tensor.offset,
        recipe=tensor.recipe,
    )


def _order(matrix: WeightMatrix) -> tuple[int, str, int, str]:
    rank = {"encoder": 0, "decoder": 1}.get(matrix.stack.split(".")[-1], 2)
    return (rank, matrix.stack, matrix.layer, matrix.name)
