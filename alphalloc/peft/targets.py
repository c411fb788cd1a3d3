"""Which linears of a model an adapter goes on, and with how many experts: decided before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from alphalloc.errors import AdapterError
from alphalloc.peft.blocks import BLOCK_LISTS, Block, block_of, inside_routed_expert, layer_entries
from alphalloc.peft.config import MoELoraConfig

_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ATTENTION = _LLAMA[:4]
_OPT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_NEOX = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
_BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
_T5 = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]

# Every linear of the family's blocks, as MoLA (arXiv 2402.08562) and AlphaLoRA (arXiv 2410.10054) adapt q, k, v, o,
# gate, up and down. Names a given model does not have are dropped. Mixture-of-experts bases: attention only.
TARGET_MODULES: dict[str, list[str]] = {
    **dict.fromkeys(
        ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3", "olmo", "olmo2", "granite",
         "stablelm", "cohere", "cohere2"),
        _LLAMA,
    ),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "granitemoe", "phimoe"), _ATTENTION),
    **dict.fromkeys(("opt", "bart", "mbart", "whisper", "m2m_100", "marian"), _OPT),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), _NEOX),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), _BERT),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_bigcode": ["c_attn", "c_proj", "c_fc"],
    "gptj": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
    "gpt_neo": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "starcoder2": ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense",
                   "output.dense"],
}  # fmt: skip

# Linears of one parent that read the same input. Under cross attention q reads the other stream.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"),
)  # fmt: skip
_CROSS = ("cross", "encoder_attn", "encdec")


@dataclass(frozen=True)
class Placement:
    """One linear that gets an adapter: its path, its block (None outside blocks), its experts and top_k."""

    path: str
    block: Block | None
    num_experts: int
    top_k: int


def features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear of any kind (plain, Conv1D, quantised, already adapted); None for others."""
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return None  # nn.MultiheadAttention reads its weight and never calls it: an adapter would do nothing
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in sizes) or list(module.children()):
        return None
    return sizes  # type: ignore[return-value]


def default_targets(model: nn.Module, model_type: str | None) -> list[str]:
    """The linears adapted when ``target_modules`` is None.

    Raises:
        AdapterError: the model type is not in ``TARGET_MODULES``, or the model has none of its linears.
    """
    names = TARGET_MODULES.get(str(model_type))
    if names is None:
        raise AdapterError(
            f"no target modules are known for the model type {model_type!r}: pass target_modules=[...] "
            f"or target_modules='all-linear'; its linears are {_linear_names(model)}"
        )
    paths = [path for path, module in model.named_modules() if features(module) and not inside_routed_expert(path)]
    present = [name for name in names if any(_ends_with(path, name) for path in paths)]
    if not present:
        raise AdapterError(f"expected some of {names} in a {model_type} model, found {_linear_names(model)}")
    return present


def place(model: nn.Module, config: MoELoraConfig) -> dict[str, Placement]:
    """Every linear that gets an adapter, by path, in the model's order; layers with 0 experts are left out.

    Raises:
        AdapterError: a name matches nothing or something that is not a linear, the depth differs from the model's, or
            a linear outside the blocks has no entry in the schedule.
    """
    matched = dict(_matched(model, config))
    if isinstance(config.target_modules, list | set):
        _refuse_unmatched(model, config)
    if not matched:
        raise AdapterError(
            f"target_modules={config.target_modules!r} matches no linear of the model (exclude_modules, "
            f"modules_to_save and layers_to_transform count too); its linears are {_linear_names(model)}"
        )
    blocks = {path: block_of(path, _block_lists(config)) for path in matched}
    per_layer = isinstance(config.num_experts, list)
    outside = [path for path, block in blocks.items() if block is None]
    if per_layer and outside:
        raise AdapterError(
            f"{outside[0]!r} lies outside the blocks, so the schedule has no entry for it; leave it out of "
            "target_modules, name its list of blocks in layers_pattern, or train it by modules_to_save"
        )
    inside = [block for block in blocks.values() if block is not None]
    entries = layer_entries(model, inside, config) if per_layer else {}
    result = {}
    for path, block in blocks.items():
        experts, top_k = config.experts_at(0 if block is None or not entries else entries[block])
        if experts:
            result[path] = Placement(path, block, experts, top_k)
    return result


def router_group(path: str) -> tuple[str, tuple[str, ...]] | None:
    """The key shared by the linears that read the same input as the one at ``path``; None when it reads its own."""
    parent, _, name = path.rpartition(".")
    for group in SAME_INPUT:
        if name in group:
            cross = any(mark in parent.rpartition(".")[2].lower() for mark in _CROSS)
            return None if cross and name == group[0] else (parent, group)
    return None


def _matched(model: nn.Module, config: MoELoraConfig) -> Iterable[tuple[str, nn.Module]]:
    adapted: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if not path or (adapted and path.startswith(adapted)) or inside_routed_expert(path):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted = (f"{path}.",)  # its inside is no longer the base model's
        if not check_target_module_exists(config, path):
            continue
        if features(module) is None:
            raise AdapterError(
                f"target_modules matches {path!r}, a {type(module).__name__}, which is not a linear; "
                f"name linears only, such as {_linear_names(model)}"
            )
        yield path, module


def _refuse_unmatched(model: nn.Module, config: MoELoraConfig) -> None:
    """Every name must match a linear: PEFT ignores one that does not, and the adapter is silently smaller."""
    paths = [path for path, module in model.named_modules() if not inside_routed_expert(path) and features(module)]
    missing = sorted(name for name in config.target_modules or () if not any(_ends_with(p, name) for p in paths))
    if not missing:
        return
    fused = sorted(
        {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.dim() == 3 and "expert" in name}
    )
    note = f"; the routed experts of this model ({fused[0]}, ...) are left alone" if fused else ""
    raise AdapterError(
        f"target_modules {missing} match no linear of the model{note}; its linears are {_linear_names(model)}"
    )


def _block_lists(config: MoELoraConfig) -> tuple[str, ...]:
    pattern = config.layers_pattern
    if not pattern:
        return BLOCK_LISTS
    return (pattern,) if isinstance(pattern, str) else tuple(pattern)


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _linear_names(model: nn.Module) -> list[str]:
    """Last names of the model's linears, sorted, for messages."""
    paths = [path for path, module in model.named_modules() if features(module) and not inside_routed_expert(path)]
    return sorted({path.rpartition(".")[2] for path in paths if "base_layer" not in path})
