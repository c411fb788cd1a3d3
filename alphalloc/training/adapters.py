"""Puts the adapter of a recipe on a model: MoE-LoRA, or plain LoRA with one rank, a schedule's ranks or its size."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from alphalloc.allocation import ExpertSchedule, ModuleShape, ModuleShapes, equal_lora_ranks
from alphalloc.errors import AdapterError
from alphalloc.training.recipe import AdapterSettings

MOE_FIELDS = (
    "balance", "balance_coef", "contrastive", "contrastive_coef", "tau", "contrastive_start_step", "router_z_coef",
    "normalize_topk", "share_router", "rank_mode",
)  # fmt: skip


@dataclass(frozen=True)
class ParameterRow:
    """Trainable parameters of one layer: its experts (None: plain LoRA), its ranks, and the count."""

    layer: str
    num_experts: int | None
    top_k: int | None
    ranks: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class ParameterTable:
    """What is trained: the sum over all tensors that require a gradient, those of the base model, and each layer."""

    trainable: int
    base: int
    layers: tuple[ParameterRow, ...]


def adapt(model: Any, settings: AdapterSettings, schedule: ExpertSchedule, *, seed: int) -> Any:
    """Return ``model`` with a fresh adapter as a PeftModel; ``seed`` draws its weights.

    Raises AdapterError when the adapter does not fit the model.
    """
    import peft
    import torch

    config = adapter_config(model, settings, schedule, seed=seed)
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


def adapter_config(model: Any, settings: AdapterSettings, schedule: ExpertSchedule, *, seed: int) -> Any:
    """Return the configuration for PEFT: a MoELoraConfig, or a LoraConfig with a rank for every linear."""
    import peft

    if settings.method == "moe":
        return _moe_config(settings, schedule, seed)
    fields = {"uniform": _uniform_lora, "schedule": _scheduled_lora, "equal": _equal_lora}[settings.lora_ranks]
    return peft.LoraConfig(
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        **fields(model, settings, schedule),
    )


def parameter_table(model: Any) -> ParameterTable:
    """Return the trainable parameters of an adapted model, layer by layer."""
    from alphalloc.peft.blocks import block_of

    rows: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = block_of(name.removeprefix("base_model.model."))
            layer = "other" if block is None else f"{block.list_path}.{block.layer}"
            rows.setdefault(layer, []).append((name, parameter.numel()))
    every = list(model.parameters())
    trainable = sum(p.numel() for p in every if p.requires_grad)
    shapes = _expert_shapes(model)
    return ParameterTable(
        trainable=trainable,
        base=sum(p.numel() for p in every) - trainable,
        layers=tuple(
            ParameterRow(layer, *shapes.get(layer, (None, None, ())), sum(count for _, count in found))
            for layer, found in rows.items()
        ),
    )


def _moe_config(settings: AdapterSettings, schedule: ExpertSchedule, seed: int) -> Any:
    from alphalloc.peft import MoELoraConfig

    targets = settings.target_modules
    fields = {name: getattr(settings, name) for name in MOE_FIELDS}
    return MoELoraConfig.from_schedule(
        schedule,
        r=settings.r,
        lora_alpha=_whole(settings.lora_alpha),
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        seed=seed,
        **fields,
    )


def _uniform_lora(model: Any, settings: AdapterSettings, schedule: ExpertSchedule) -> dict[str, Any]:
    return {"r": settings.r, "lora_alpha": _whole(settings.lora_alpha), "target_modules": _targets(model, settings)}


def _scheduled_lora(model: Any, settings: AdapterSettings, schedule: ExpertSchedule) -> dict[str, Any]:
    """Rank experts x r in every slot of the schedule, which may be a module and may have a rank of its own.

    Raises AdapterError under rank_mode ``total``, where the schedule's MoE-LoRA has rank r in every layer.
    """
    from alphalloc.export.lora import lora_plan
    from alphalloc.export.options import ExportOptions

    _refuse(settings, "rank_mode", "per_expert")
    targets = _targets(model, settings)
    options = ExportOptions(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        target_modules=None if isinstance(targets, str) else tuple(targets),
        module_paths=tuple(_block_linears(model)),
    )
    plan = lora_plan(schedule, options)
    return {
        "r": plan.rank,
        "lora_alpha": plan.lora_alpha,
        "target_modules": targets,
        "rank_pattern": plan.rank_pattern,
        "alpha_pattern": plan.alpha_pattern,
        "exclude_modules": plan.exclude_modules,
    }


def _equal_lora(model: Any, settings: AdapterSettings, schedule: ExpertSchedule) -> dict[str, Any]:
    """As many parameters as the schedule's MoE-LoRA has on the same linears, routers included.

    Raises AdapterError where that MoE-LoRA splits a total rank or shares routers.
    """
    from alphalloc.peft.targets import features, place

    _refuse(settings, "rank_mode", "per_expert")
    _refuse(settings, "share_router", "none")
    moe = _moe_config(settings, schedule, 0)
    moe.target_modules = _targets(model, settings)
    if moe.target_modules == "all-linear":
        moe.target_modules = _block_linears(model)
    places = place(model, moe)
    shapes = [
        ModuleShape(position, "", path, *(features(model.get_submodule(path)) or (0, 0)))
        for position, path in enumerate(places)
    ]
    # Every linear stands as a layer of its own here: the ranks are worked out linear by linear.
    counts = ExpertSchedule.from_counts([placement.num_experts for placement in places.values()])
    equal = equal_lora_ranks(counts, ModuleShapes(tuple(shapes)), r=settings.r)
    ranks = {str(slot.role): rank for slot, rank in equal.ranks.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    scale = settings.lora_alpha / settings.r
    others = {re.escape(path): rank for path, rank in ranks.items() if rank != common}
    return {
        "r": common,
        "lora_alpha": _whole(scale * common),
        "target_modules": list(ranks),
        "rank_pattern": others,
        "alpha_pattern": {key: _whole(scale * rank) for key, rank in others.items()},
    }


def _refuse(settings: AdapterSettings, name: str, counted: str) -> None:
    """Raise AdapterError where a setting lays the MoE-LoRA out otherwise than the ranks are counted."""
    value = getattr(settings, name)
    if value != counted:
        raise AdapterError(
            f"expected {name} {counted!r} beside lora_ranks {settings.lora_ranks!r}, got {value!r}: the ranks are "
            "counted for experts of rank r, a router in every linear; change it, or take lora_ranks 'uniform'"
        )


def _block_linears(model: Any) -> list[str]:
    from alphalloc.peft.blocks import block_of, inside_routed_expert
    from alphalloc.peft.targets import features

    paths = [path for path, module in model.named_modules() if block_of(path) and features(module)]
    return [path for path in paths if not inside_routed_expert(path)]


def _targets(model: Any, settings: AdapterSettings) -> Any:
    """The linears as PEFT takes them: the recipe's, else those of the model's family."""
    from alphalloc.peft.targets import default_targets

    if settings.target_modules is None:
        return default_targets(model, getattr(model.config, "model_type", None))
    return settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)


def _expert_shapes(model: Any) -> dict[str, tuple[int | None, int | None, tuple[int, ...]]]:
    """(experts, top_k, ranks) of each layer that carries an adapter."""
    from alphalloc.peft import named_adapters
    from alphalloc.peft.blocks import block_of

    found: dict[str, tuple[int | None, int | None, set[int]]] = {}
    for path, adapter in named_adapters(model, "default"):
        block = block_of(path)
        if block is not None:
            key = f"{block.list_path}.{block.layer}"
            _, _, ranks = found.setdefault(key, (adapter.num_experts, adapter.top_k, set()))
            ranks.add(adapter.expert_rank)
    for path, module in model.named_modules():
        block = block_of(path.removeprefix("base_model.model."))
        rank = getattr(module, "r", None)
        if block is not None and isinstance(rank, dict) and "default" in rank:
            found.setdefault(f"{block.list_path}.{block.layer}", (None, None, set()))[2].add(rank["default"])
    return {key: (experts, top_k, tuple(sorted(ranks))) for key, (experts, top_k, ranks) in found.items()}


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
