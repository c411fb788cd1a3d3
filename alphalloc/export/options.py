"""What the user decides about an export, and what an exporter returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import AdapterError, InvalidParameterError

DEFAULT_RANK = 8  # MoLA's and AlphaLoRA's (arXiv 2402.08562, 2410.10054), as lora_alpha 16
Method = Literal["lora", "moe"]


@dataclass(frozen=True)
class ExportOptions:
    """The adapter that a schedule is written for.

    ``r`` is the rank of each expert (default: the schedule's, else 8). ``lora_alpha / r`` is the scale of every
    expert and stays the same in every layer. ``target_modules`` are names at the end of module paths (default: the
    schedule's, else all linears). ``method`` says what trainers get that can have both: ``lora``, plain LoRA whose
    rank in each layer is experts x r, or ``moe``, our MoE-LoRA. ``block_list`` is the name before the block index
    in module paths ("layers", GPT-2 "h", BERT "layer", T5 "block"); with ``module_paths``, all paths of the model's
    linears, it is found and every key is checked to match its own layer and nothing else. ``average`` lets targets
    with one number for all layers have the rounded mean. ``init_adapter`` is the folder of an untouched adapter.

    Raises InvalidParameterError for values out of range.
    """

    r: int | None = None
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    method: Method = "lora"
    block_list: str | None = None
    module_paths: tuple[str, ...] = ()
    average: bool = False
    init_adapter: str = "init_adapter"

    def __post_init__(self) -> None:
        if self.r is not None and (isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1):
            raise InvalidParameterError(f"the rank r must be a positive whole number, found {self.r!r}")
        if isinstance(self.lora_alpha, bool) or not 0 < self.lora_alpha < 1e9:
            raise InvalidParameterError(f"lora_alpha must be a positive number, found {self.lora_alpha!r}")
        if isinstance(self.lora_dropout, bool) or not 0 <= self.lora_dropout < 1:
            raise InvalidParameterError(f"lora_dropout must lie in [0, 1), found {self.lora_dropout!r}")
        if self.method not in get_args(Method):
            raise InvalidParameterError(f"method must be 'lora' or 'moe', found {self.method!r}")

    def rank_for(self, schedule: ExpertSchedule) -> int:
        """Return the rank of each expert: the option's, else the schedule's adapter's, else 8."""
        if self.r is not None:
            return self.r
        if schedule.adapter is not None and schedule.adapter.r is not None:
            return schedule.adapter.r
        return DEFAULT_RANK

    def targets_for(self, schedule: ExpertSchedule) -> list[str] | None:
        """Return the target modules: the option's, else the schedule's own roles; None for all linears."""
        if self.target_modules is not None:
            return list(self.target_modules)
        if schedule.level == "module":
            return list(dict.fromkeys(str(slot.role) for slot in schedule.slots))
        return None if schedule.adapter is None else list(schedule.adapter.target_modules)


@dataclass(frozen=True)
class Export:
    """A finished export: ``text`` is the file; ``settings`` are its keys where the target reads YAML or JSON.

    ``stale`` are keys that an existing file must lose, since they would contradict these; ``keep`` are values that
    it may keep instead; ``notes`` are warnings.
    """

    text: str
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def refuse_modules(schedule: ExpertSchedule, target: str) -> None:
    """Raise AdapterError for a schedule in which every module has its own count."""
    if schedule.level == "module":
        raise AdapterError(
            f"{target} has one number of experts a layer, this schedule one a module; allocate with level 'layer', or "
            "export it as plain LoRA with 'peft'"
        )


def layer_ranks(schedule: ExpertSchedule, options: ExportOptions) -> list[int]:
    """Return the rank of each layer's experts."""
    default = options.rank_for(schedule)
    return [default if layer.rank is None else layer.rank for layer in schedule.layers]


def tidy(number: float) -> int | float:
    """Return a whole number as int."""
    return int(number) if float(number).is_integer() else number
