"""The experts of a mixture stored as one tensor a layer, taken apart: one matrix, and so one spectrum, an expert.

Most families store [experts, out, in] with gate above up (Mixtral, Qwen-MoE, DeepSeek, Granite, GGUF); Llama 4 and
gpt-oss store [experts, in, out], gpt-oss with gate and up by turns. Which one it is follows from the shapes of the two
tensors of a block: what gate and up map to is what down maps from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alphalloc.checkpoint.buffers import FileSlice, View, narrowed
from alphalloc.checkpoint.fused import GATE_UP, number, setting
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, Array, StoredTensor

MAX_EXPERTS = 4096  # chosen here: the largest published models have 512 a layer
_ROLES: dict[str, tuple[str, ...]] = {  # last name of the module path -> what an expert's matrix is
    "gate_up_proj": GATE_UP, "input_linear": GATE_UP, "ffn_gate_up_exps": GATE_UP,
    "down_proj": ("down_proj",), "output_linear": ("down_proj",), "ffn_down_exps": ("down_proj",),
    "gate_proj": ("gate_proj",), "ffn_gate_exps": ("gate_proj",), "w1": ("gate_proj",),
    "up_proj": ("up_proj",), "ffn_up_exps": ("up_proj",), "w3": ("up_proj",), "v1": ("up_proj",),
    "w2": ("down_proj",),
}  # fmt: skip
_PARTNERS = {"gate_up_proj": "down_proj", "input_linear": "output_linear", "ffn_gate_up_exps": "ffn_down_exps"}
_OUTSIDE_EXPERTS = ("input_linear", "output_linear")  # Granite's, which stand directly in the mixture's module
_STACKED_2D = {"w1": False, "v1": False, "w2": True}  # DBRX: [experts·inner, width]; w2 is stored in x out


def split_experts(
    tensors: Sequence[StoredTensor], config: Mapping[str, Any], spell: Callable[[str], str], *, split_fused: bool = True
) -> list[StoredTensor]:
    """Return ``tensors`` with every 3-D tensor of experts replaced by one matrix an expert (and part).

    They are named "<tensor>[3]" or, with gate and up apart, "<tensor>[3.gate_proj]"; their block and role are those of
    a checkpoint with a module an expert. ``split_fused=False`` keeps gate and up together. What is not understood is
    returned as it is.
    """
    shapes = {spell(tensor.name): tensor.shape for tensor in tensors}
    names = {tensor.name for tensor in tensors}
    found: list[StoredTensor] = []
    for tensor in tensors:
        path = spell(tensor.name)
        tensor = _as_3d(tensor, path, config)
        roles = _roles(tensor, path)
        if not roles or not 0 < tensor.shape[0] <= MAX_EXPERTS:
            found.append(tensor)
            continue
        orientation = _orientation(path, shapes, config)
        if orientation is None and len(roles) == 2:
            found.append(tensor)
            continue
        turned = tensor.kind == "conv1d" or bool(orientation)
        by_turns = setting(config, "model_type") == "gpt_oss" or f"{tensor.name}_bias" in names
        whole = roles if split_fused or len(roles) == 1 else (path.rpartition(".")[2],)
        for expert in range(tensor.shape[0]):
            found += _expert(tensor, expert, whole, path, turned=turned, by_turns=by_turns)
    return found


def _roles(tensor: StoredTensor, path: str) -> tuple[str, ...]:
    if len(tensor.shape) != 3 or (tensor.dtype not in FLOAT_DTYPES and not tensor.quantized):
        return ()
    parts = path.split(".")
    last = parts[-1]
    known = "experts" in parts or last.endswith("_exps") or last in _OUTSIDE_EXPERTS
    return _ROLES.get(last, ()) if known and not tensor.name.endswith("bias") else ()


def _orientation(path: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool | None:
    """Whether a block's experts are stored in x out; None when neither their shapes nor the config tell."""
    base, _, last = path.rpartition(".")
    upper = next((above for above, below in _PARTNERS.items() if last in (above, below)), "")
    fused, down = shapes.get(f"{base}.{upper}", ()), shapes.get(f"{base}.{_PARTNERS.get(upper)}", ())
    if len(fused) != 3:
        return None
    _, first, second = fused
    if len(down) == 3:
        as_linear = second == down[1] and first == 2 * down[2]
        as_turned = first == down[2] and second == 2 * down[1]
        if as_linear != as_turned:
            return as_turned
    width = number(config, "hidden_size", "n_embd", "d_model")
    return first == width if width is not None and (first == width) != (second == width) else None


def _expert(
    tensor: StoredTensor, expert: int, roles: tuple[str, ...], path: str, *, turned: bool, by_turns: bool
) -> list[StoredTensor]:
    count, rows, cols = tensor.shape
    load = narrowed(tensor.load, expert, expert + 1, (rows, cols), count)
    parts = path.split(".")
    base = parts[: parts.index("experts")] if "experts" in parts else [*parts[:-1], *_mixture(parts[-1])]
    long = cols if turned else rows
    found = []
    for at, role in enumerate(roles):
        side = long // len(roles)
        picked = slice(at, None, len(roles)) if by_turns else slice(at * side, (at + 1) * side)
        part: Callable[[], Array] = load
        if len(roles) > 1:
            if turned:
                part = View(load, (rows, cols), cols=picked)
            elif by_turns:
                part = View(load, (rows, cols), rows=picked)
            else:
                part = narrowed(load, at * side, (at + 1) * side, (side, cols), rows)
        label = f"{expert}.{role}" if len(roles) > 1 else str(expert)
        found.append(
            replace(
                tensor,
                name=f"{tensor.name}[{label}]",
                shape=(rows, side) if turned else (side, cols),
                nbytes=tensor.nbytes // count // len(roles),
                load=part,
                raw=None,
                offset=part.offset if isinstance(part, FileSlice) else None,
                storage=(*tensor.storage, label) if tensor.storage is not None else None,
                kind="conv1d" if turned else "",
                place=".".join([*base, "experts", str(expert), role]),
                recipe=f"{tensor.recipe} turned {turned}, by turns {by_turns}".strip(),
                module=path.rpartition(".")[0] if parts[-2:-1] == ["experts"] else path,
            )
        )
    return found


def _mixture(last: str) -> list[str]:
    """GGUF names its experts beside the attention; the module of the mixture is added as Hugging Face spells it."""
    return ["mlp"] if last.endswith("_exps") else []


def _as_3d(tensor: StoredTensor, path: str, config: Mapping[str, Any]) -> StoredTensor:
    """DBRX stacks its experts' rows in a matrix; its config says how many there are."""
    parts = path.split(".")
    settings = config.get("ffn_config")
    count = settings.get("moe_num_experts") if isinstance(settings, Mapping) else None
    if parts[-3:-1] != ["experts", "mlp"] or parts[-1] not in _STACKED_2D or len(tensor.shape) != 2:
        return tensor
    if not isinstance(count, int) or count < 1 or tensor.shape[0] % count:
        return tensor
    rows, cols = tensor.shape
    inner = (count, rows // count, cols)
    load = replace(tensor.load, shape=inner) if isinstance(tensor.load, FileSlice) else tensor.load
    return replace(tensor, shape=inner, load=load, kind="conv1d" if _STACKED_2D[parts[-1]] else tensor.kind)
