"""From tensor names to places: which block of which stack a matrix belongs to, and which role it has there.

One rule serves Llama, Mistral, Gemma, Qwen, GPT-2, GPT-NeoX, OPT, BERT, T5, BART, Whisper and names never seen: the
repeated block index is an integer in the path that many matrices share up to it. GGUF names are first spelled as
Hugging Face spells them.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alphalloc.errors import UnknownArchitectureError

Path = tuple[str, ...]  # the parts of a module path
BLOCK_WORDS = frozenset(
    {"layers", "layer", "h", "block", "blocks", "blk", "resblocks", "encoder_layers", "decoder_layers"}
)
_INDEX = re.compile(r"[0-9]{1,6}")
_ADAPTER = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|alphalloc_molora_adapters)(\.|$)")
_NOT_A_LINEAR = re.compile(
    r"(relative_attention_bias|embed_tokens|wte|wpe|(.*_)?embeddings?|pos_emb.*|rel_pos.*|(.*_)?norm|ln_\w+|A_log)"
)

_LLAMA_GGUF = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GGUF_BLOCKS = {  # architecture -> (prefix of a block in Hugging Face's spelling, names inside the block)
    "gpt2": ("transformer.h", {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
                               "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "gptneox": ("gpt_neox.layers", {"attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
                                    "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}),
    "bert": ("encoder.layer", {"attn_q": "attention.self.query", "attn_k": "attention.self.key",
                               "attn_v": "attention.self.value", "attn_output": "attention.output.dense",
                               "ffn_up": "intermediate.dense", "ffn_down": "output.dense"}),
}  # fmt: skip
_GGUF_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head"}


@dataclass(frozen=True)
class Place:
    """Where a matrix sits: ``layer`` is -1 and ``stack`` "" outside the repeated blocks."""

    module: str
    stack: str
    layer: int
    role: str


def module_path(name: str) -> str:
    """Return the module that tensor ``name`` belongs to: without ".weight", PEFT's ".base_layer" taken out."""
    path = name.removesuffix(".weight")
    if path.endswith("in_proj_weight"):  # torch.nn.MultiheadAttention
        path = path.removesuffix("_weight")
    return path.replace(".base_layer", "")


def not_a_linear(name: str) -> str:
    """Return why a two-dimensional tensor of this name is not a linear layer's weight, "" when it may be one."""
    if _ADAPTER.search(name):
        return "weight of an adapter, not of the model"
    if name.endswith((".bias", "_bias")):
        return "2-D bias"
    last = module_path(name).split(".")[-1]
    return f"{last}: not a linear layer" if _NOT_A_LINEAR.fullmatch(last) else ""


def gguf_path(name: str, architecture: str) -> str:
    """Return a GGUF tensor name in Hugging Face's spelling, as far as it is known ("" architecture: Llama's)."""
    path = name.removesuffix(".weight")
    match = re.fullmatch(r"(enc\.|dec\.)?blk\.([0-9]{1,6})\.(.+)", path)
    if match is None:
        return _GGUF_OUTSIDE.get(path, path)
    side, index, inner = match.groups()
    if side:
        return f"{'encoder' if side == 'enc.' else 'decoder'}.block.{index}.{inner}"
    prefix, names = _GGUF_BLOCKS.get(architecture, ("model.layers", _LLAMA_GGUF))
    return f"{prefix}.{index}.{names.get(inner, inner)}"


def find_places(modules: Mapping[str, str], layer_pattern: str | None = None) -> dict[str, Place]:
    """Return the place of every tensor in ``modules`` (tensor name -> module path), those outside blocks included.

    Without a pattern the block index of a path is the outermost integer after a usual word (layers, h, block ...)
    or else the integer with the most consecutive values; expert lists never count as blocks. A group of a single
    role beside a fuller stack (a projector, say) is outside.

    ``layer_pattern`` overrides this. With ``{}`` in it, it is literal text with ``{}`` for the index
    ("encoder.block.{}."); otherwise it is a regular expression searched in the module path with one group, or with
    groups named ``layer`` and ``stack``.

    Raises UnknownArchitectureError, listing names found, when there are no repeated blocks.
    """
    split = _split_by_pattern(modules, layer_pattern) if layer_pattern else _split_by_rule(modules)
    if not split:
        listed = ", ".join(list(modules)[:8]) or "none"
        asked = f"layer pattern {layer_pattern!r} matches none" if layer_pattern else "no repeated block index"
        raise UnknownArchitectureError(
            f"{asked} among the names of {len(modules)} matrices; found: {listed}; give layer_pattern, for example "
            "'encoder.block.{}.'"
        )
    stacks = _stack_names({prefix for prefix, _, _ in split.values()})
    roles = _roles(split)
    places = {}
    for name, module in modules.items():
        if name in split:
            prefix, layer, _ = split[name]
            places[name] = Place(module, stacks[prefix], layer, roles[name])
        else:
            places[name] = Place(module, "", -1, module.split(".")[-1])
    return places


def _split_by_rule(modules: Mapping[str, str]) -> dict[str, tuple[Path, int, Path]]:
    """Tensor name -> (path up to the block index, index, path inside the block), for tensors within blocks."""
    parts = {name: tuple(module.split(".")) for name, module in modules.items()}
    indices: defaultdict[Path, set[int]] = defaultdict(set)
    for path in parts.values():
        for at, part in enumerate(path):
            if _INDEX.fullmatch(part):
                indices[path[:at]].add(int(part))
    split = {}
    for name, path in parts.items():
        position = _block_position(path, indices)
        if position is not None:
            split[name] = (path[:position], int(path[position]), path[position + 1 :])
    inner: defaultdict[Path, set[Path]] = defaultdict(set)
    for prefix, _, rest in split.values():
        inner[prefix].add(_without_expert_index(rest))
    full = max((len(rests) for rests in inner.values()), default=0)
    return {name: item for name, item in split.items() if full < 2 or len(inner[item[0]]) >= 2}


def _block_position(path: Path, indices: Mapping[Path, set[int]]) -> int | None:
    candidates = [at for at, part in enumerate(path) if _INDEX.fullmatch(part) and path[at - 1 : at] != ("experts",)]
    usual = [at for at in candidates if at and path[at - 1] in BLOCK_WORDS]
    if usual:
        return usual[0]
    runs = [(len(found), -at) for at in candidates if _is_run(found := indices[path[:at]])]
    return -max(runs)[1] if runs else None


def _is_run(found: set[int]) -> bool:
    return len(found) >= 2 and max(found) - min(found) == len(found) - 1


def _split_by_pattern(modules: Mapping[str, str], pattern: str) -> dict[str, tuple[Path, int, Path]]:
    regex = _compiled(pattern)
    group: int | str = "layer" if "layer" in regex.groupindex else 1
    split = {}
    for name, module in modules.items():
        match = regex.search(module + ".")  # the added dot lets "block.{}." match a block that is a single matrix
        if match is None:
            continue
        index = match.group(group)
        if index is None or not _INDEX.fullmatch(index):
            raise UnknownArchitectureError(
                f"layer pattern {pattern!r}: expected a block index in its group, found {index!r} in {module!r}"
            )
        before = match.group("stack") if "stack" in regex.groupindex else module[: match.start(group)].strip(".")
        rest = module[match.end(group) :].strip(".")
        split[name] = (tuple((before or "").split(".")), int(index), tuple(rest.split(".")) if rest else ())
    return split


def _compiled(pattern: str) -> re.Pattern[str]:
    source = pattern
    if "{}" in pattern:
        head, tail = pattern.split("{}", 1)
        source = f"(?:^|(?<=\\.)){re.escape(head)}([0-9]+){re.escape(tail)}"
        if not tail:
            source += r"(?=\.)"
    try:
        regex = re.compile(source)
    except re.error as exc:
        raise UnknownArchitectureError(f"layer pattern {pattern!r}: not a regular expression: {exc}") from exc
    if regex.groups != 1 and "layer" not in regex.groupindex:
        raise UnknownArchitectureError(
            f"layer pattern {pattern!r}: expected one group for the block index, found {regex.groups}; write it as "
            "'encoder.block.{}.' or name the groups 'layer' and 'stack'"
        )
    return regex


def _stack_names(prefixes: Iterable[Path]) -> dict[Path, str]:
    """Return "" for a single stack, else what tells the prefixes apart: their first differing part, or all of it."""
    ordered = sorted(prefixes)
    if len(ordered) == 1:
        return {ordered[0]: ""}
    start = _shared_parts(ordered)
    end = _shared_parts([prefix[:start:-1] for prefix in ordered])  # the first differing part always stays
    cores = [prefix[start : len(prefix) - end] or prefix[-1:] or ("",) for prefix in ordered]
    levels = ([core[0] for core in cores], [".".join(core) for core in cores], [".".join(p) for p in ordered])
    names = next((level for level in levels if len(set(level)) == len(level)), levels[-1])
    return dict(zip(ordered, names, strict=True))


def _shared_parts(paths: Sequence[Path]) -> int:
    """How many leading parts all paths share: as many as the first and the last in order do."""
    pairs = zip(min(paths), max(paths), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _roles(split: Mapping[str, tuple[Path, int, Path]]) -> dict[str, str]:
    """The last part of the path inside the block, or the whole of it where the last part alone is ambiguous."""
    owners: defaultdict[tuple[Path, str], set[Path]] = defaultdict(set)
    inner = {name: (prefix, _without_expert_index(rest) or ("weight",)) for name, (prefix, _, rest) in split.items()}
    for prefix, rest in inner.values():
        owners[prefix, rest[-1]].add(rest)
    return {
        name: rest[-1] if len(owners[prefix, rest[-1]]) == 1 else ".".join(rest)
        for name, (prefix, rest) in inner.items()
    }


def _without_expert_index(rest: Path) -> Path:
    """All experts of a block share a role: "experts.3.w1" reads as "experts.w1"."""
    return tuple(
        part for at, part in enumerate(rest) if not (at and rest[at - 1] == "experts" and _INDEX.fullmatch(part))
    )
