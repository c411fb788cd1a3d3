"""The configuration of a MoE-LoRA adapter: what ``adapter_config.json`` holds, the whole expert schedule included."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from peft import PeftConfig

from alphalloc.documents import package_version
from alphalloc.errors import AdapterError
from alphalloc.peft.card import write_loading_card
from alphalloc.peft.register import peft_type

CHOICES: dict[str, tuple[str, ...]] = {
    "bias": ("none", "all"),
    "rank_mode": ("per_expert", "total"),
    "normalize_topk": ("auto", "always", "never"),
    "share_router": ("none", "block"),
    "balance": ("none", "switch", "mola"),
    "contrastive": ("none", "moelora", "comoe"),
}

# The published settings. AlphaLoRA's and MoLA's released commands leave the balance loss off; MoLA's code has 1e-3.
# MoELoRA's coefficients are our declared reading of the paper (no code was released).
PRESETS: dict[str, dict[str, Any]] = {
    "alphalora": {"balance": "none", "contrastive": "none", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
    "mola": {"balance": "mola", "balance_coef": 1e-3, "r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
    "moelora": {
        "balance": "switch",
        "balance_coef": 1e-3,
        "contrastive": "moelora",
        "contrastive_coef": 1e-2,
        "tau": 0.07,
        "num_experts": 8,
        "r": 4,
    },
}


class ScheduleLike(Protocol):
    """What ``from_schedule`` reads from an ExpertSchedule."""

    @property
    def num_experts(self) -> tuple[int, ...]: ...
    @property
    def top_k(self) -> tuple[int, ...]: ...
    def to_json(self) -> str: ...


@dataclass
class MoELoraConfig(PeftConfig):
    """Configuration of MoE-LoRA for ``peft.get_peft_model`` and every trainer that takes a ``peft_config``.

    Args:
        r: rank of each expert (``rank_mode="per_expert"``) or of all experts of a layer together (``"total"``).
            8, as MoLA (arXiv 2402.08562) and AlphaLoRA (arXiv 2410.10054).
        lora_alpha: LoRA's factor: an expert's output is scaled by ``lora_alpha / r``. 16, as the same papers.
        lora_dropout: dropout on the experts' input; the router never sees it. 0.0, as PEFT's LoRA.
        target_modules: names (matched at the end of a module's path), a regular expression over the whole path, or
            ``"all-linear"``. None takes the family's linears in the blocks (``tuner.TARGET_MODULES``).
        exclude_modules: names or a regular expression of modules to leave alone.
        layers_to_transform: block indices to adapt; None for all.
        layers_pattern: name of the list of blocks where it is not one of ``blocks.BLOCK_LISTS``.
        modules_to_save: modules trained in full and saved with the adapter.
        bias: ``"none"`` or ``"all"``: which biases of the base model are trained.
        num_experts: experts of every layer, or one number a layer (all stacks in the model's order, encoder first).
            0: that layer is not adapted; 1: plain LoRA without a router. 5, the mean of AlphaLoRA's schedules.
        top_k: experts a token uses: one upper bound for all layers (a layer with fewer experts uses all of them), or
            one number a layer. 2, as MoLA.
        rank_mode: what ``r`` counts, see there.
        normalize_topk: whether the selected gates are scaled to sum 1: ``"always"``, ``"never"``, or ``"auto"``: yes
            for top_k >= 2, no for 1, where a gate of constant 1 would leave the router without a gradient.
        share_router: ``"none"`` (a router per linear, as MoLA) or ``"block"``: the linears of a block that read the
            same input (q, k, v; gate, up) share the decision of the first of them.
        init_adapter_weights: True: A uniform (Kaiming, a = sqrt 5), B zero; False: B random too, so that an untrained
            adapter changes the output (for tests).
        balance: ``"none"``, ``"switch"`` (per linear, padding masked, injected into the backward pass) or ``"mola"``
            (pooled over a layer's linears; collected, see ``alphalloc.moe``).
        balance_coef: its coefficient. 1e-3, as MoLA's code.
        contrastive: ``"none"``, ``"moelora"`` (same-expert supervised contrast) or ``"comoe"`` (arXiv 2505.17553).
        contrastive_coef: its coefficient. 1e-2, as CoMoE's best.
        tau: temperature of the contrastive loss. 0.07, chosen here as SupCon's (arXiv 2004.11362).
        contrastive_start_step: first optimiser step with the contrastive loss; None: the warm-up, at least 50 steps.
        router_z_coef: coefficient of the router z-loss (arXiv 2202.08906). 0.0: off.
        seed: seed of the tokens that the contrastive loss samples.
        schedule: the whole ExpertSchedule document the numbers came from, or its id, or None.

    Raises:
        AdapterError: a value is out of its range, or ``top_k`` is larger than the experts there are.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all"] = "none"
    num_experts: list[int] | int = 5
    top_k: list[int] | int = 2
    rank_mode: Literal["per_expert", "total"] = "per_expert"
    normalize_topk: Literal["auto", "always", "never"] = "auto"
    share_router: Literal["none", "block"] = "none"
    init_adapter_weights: bool = True
    balance: Literal["none", "switch", "mola"] = "none"
    balance_coef: float = 1e-3
    contrastive: Literal["none", "moelora", "comoe"] = "none"
    contrastive_coef: float = 1e-2
    tau: float = 0.07
    contrastive_start_step: int | None = None
    router_z_coef: float = 0.0
    seed: int = 0
    schedule: dict[str, Any] | str | None = None
    alphalloc_version: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type()
        for name in ("num_experts", "top_k"):
            value = getattr(self, name)
            setattr(self, name, list(value) if isinstance(value, (list, tuple)) else value)
        _check(self)

    @property
    def target_parameters(self) -> None:
        """Always None: fused 3-D parameters are left alone. PEFT asks for the attribute."""
        return

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> MoELoraConfig:
        """The configuration published as ``name`` (a key of ``PRESETS``), with any field overridden.

        Raises:
            AdapterError: no preset of that name.
        """
        return cls(**{**_preset(name), **overrides})

    @classmethod
    def from_schedule(
        cls,
        schedule: ScheduleLike | dict[str, Any] | str | Path,
        *,
        r: int | None = None,
        lora_alpha: float = 16,
        target_modules: Sequence[str] | str | None = None,
        preset: str | None = None,
        **fields: Any,
    ) -> MoELoraConfig:
        """The configuration with the experts and top_k of ``schedule``, which it carries along whole.

        Args:
            schedule: an ExpertSchedule, its document as a dict, or the path of a saved ``schedule.json``.
            r: rank of each expert; the one the schedule's budget was spent for when it has one, else 8.
            target_modules: those the budget was spent for when it has them, else as in the class.
            lora_alpha: as in the class.
            preset: a key of ``PRESETS`` for the losses and the dropout.
            fields: any other field of the class.

        Raises:
            AdapterError: the document is not a schedule, counts by module, sets other ranks than ``r``, or a value is
                out of range.
        """
        document = _schedule_document(schedule)
        adapter = document.get("adapter") or {}
        r = r or adapter.get("r") or 8
        target_modules = adapter.get("target_modules") if target_modules is None else target_modules
        _check_expressible(document, r)
        values = {**_preset(preset), **fields} if preset is not None else dict(fields)
        values.update(
            r=r,
            lora_alpha=lora_alpha,
            target_modules=target_modules if isinstance(target_modules, str | None) else list(target_modules),
            num_experts=[int(layer["num_experts"]) for layer in document["layers"]],
            top_k=[int(layer["top_k"]) for layer in document["layers"]],
            schedule=document,
        )
        return cls(**values)

    def layer_stacks(self) -> list[tuple[str, int]] | None:
        """(stack, layer) of every entry of ``num_experts``, as the carried schedule names them; None without one."""
        if not isinstance(self.schedule, dict) or not isinstance(self.num_experts, list):
            return None
        layers = self.schedule.get("layers", [])
        if len(layers) != len(self.num_experts):
            return None
        return [(str(layer.get("stack", "")), int(layer["layer"])) for layer in layers]

    def experts_at(self, index: int) -> tuple[int, int]:
        """(experts, top_k) of entry ``index``; top_k never exceeds the experts."""
        experts = self.num_experts[index] if isinstance(self.num_experts, list) else self.num_experts
        k = self.top_k[index] if isinstance(self.top_k, list) else self.top_k
        return experts, min(k, experts)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; sets in sorted order, so that the same adapter is the same file."""
        return {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json`` and, into the folder's README.md, how to load the adapter."""
        self.alphalloc_version = package_version()
        super().save_pretrained(save_directory, **kwargs)
        write_loading_card(Path(save_directory), self.base_model_name_or_path)


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise AdapterError(f"expected a preset among {', '.join(sorted(PRESETS))}, got {name!r}")
    return PRESETS[name]


def _schedule_document(schedule: Any) -> dict[str, Any]:
    """The schedule as plain JSON types, whichever form it came in."""
    if isinstance(schedule, str | Path):
        path = Path(schedule)
        try:
            schedule = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise AdapterError(f"expected a saved schedule at {path}, but it cannot be read: {exc}") from exc
    elif hasattr(schedule, "to_json"):
        schedule = json.loads(schedule.to_json())
    layers = schedule.get("layers") if isinstance(schedule, dict) else None
    if not isinstance(layers, list) or not layers or any(not {"num_experts", "top_k"} <= set(x) for x in layers):
        raise AdapterError(
            "expected an expert schedule whose `layers` hold `num_experts` and `top_k`, "
            f"got {type(schedule).__name__}; make one with alphalloc.allocate or load schedule.json"
        )
    return dict(schedule)


def _check_expressible(document: dict[str, Any], r: int) -> None:
    """Raise AdapterError for a schedule that one count and one rank a layer cannot express."""
    if document.get("level", "layer") != "layer":
        raise AdapterError(
            "expected one number of experts a layer, got a schedule with one a module; allocate with level 'layer', or "
            "export it as plain LoRA: alphalloc export SCHEDULE.json --to peft"
        )
    ranks = {layer["rank"] for layer in document["layers"] if layer.get("rank") and layer["num_experts"]}
    if ranks - {r}:
        raise AdapterError(
            f"expected rank {r} in every layer, the schedule sets {sorted(ranks)}; pass that r if it is one, or "
            "export it as plain LoRA: alphalloc export SCHEDULE.json --to peft"
        )


def _check(config: MoELoraConfig) -> None:
    """Raise AdapterError for the first value that is out of range."""
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            raise AdapterError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
    if not _is_count(config.r) or config.r < 1:
        raise AdapterError(f"expected r to be a positive integer, got {config.r!r}")
    if not config.lora_alpha > 0:
        raise AdapterError(f"expected lora_alpha to be positive, got {config.lora_alpha!r}")
    if not 0 <= config.lora_dropout < 1:
        raise AdapterError(f"expected lora_dropout in [0, 1), got {config.lora_dropout!r}")
    for name in ("balance_coef", "contrastive_coef", "router_z_coef"):
        if not getattr(config, name) >= 0:
            raise AdapterError(f"expected {name} to be zero or positive, got {getattr(config, name)!r}")
    if not config.tau > 0:
        raise AdapterError(f"expected tau to be positive, got {config.tau!r}")
    _check_experts(config)


def _check_experts(config: MoELoraConfig) -> None:
    experts, top_k = config.num_experts, config.top_k
    counts = experts if isinstance(experts, list) else [experts]
    if not counts or not all(_is_count(count) for count in counts) or not any(counts):
        raise AdapterError(f"expected num_experts to be integers >= 0, at least one of them positive, got {experts!r}")
    if isinstance(top_k, list):
        if not isinstance(experts, list) or len(top_k) != len(experts):
            raise AdapterError(
                f"expected one top_k a layer, as many as num_experts has ({len(counts)}), got {len(top_k)}"
            )
        for layer, (count, k) in enumerate(_adapted(experts, top_k)):
            if not _is_count(k) or not 1 <= k <= count:
                raise AdapterError(
                    f"expected 1 <= top_k <= num_experts in every layer, but entry {layer} has "
                    f"top_k {k!r} and {count} experts; lower top_k or raise the experts"
                )
    elif not _is_count(top_k) or top_k < 1 or (max(counts) > 1 and top_k > max(counts)):
        raise AdapterError(
            f"expected 1 <= top_k <= {max(counts)}, the most experts of any layer, got {top_k!r}; "
            "lower top_k or raise num_experts"
        )


def _adapted(experts: list[int], top_k: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs of all layers; one without experts passes whatever its top_k."""
    for count, k in zip(experts, top_k, strict=True):
        yield (count, k) if count else (1, 1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
