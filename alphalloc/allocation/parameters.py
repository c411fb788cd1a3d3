"""How many parameters a schedule trains, counted as the adapter has them.

Ours, for a module of ``in x out`` with E experts of rank r: ``E * r * (in + out)``, plus a router of ``E * in`` where
E > 1: exactly the trainable numel. MoLA (arXiv 2402.08562) has a router everywhere and its tables count it:
``E * r * (in + out) + E * in``; LLaMA-2-7B with r = 8 on seven modules and 160 experts has 105,635,840 of these. Bias
terms and whatever else is trained beside the adapter are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alphalloc.allocation.schedule import ExpertSchedule
from alphalloc.allocation.shapes import ModuleShape, ModuleShapes
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EQUAL_WITHIN = 0.005  # two arms of a comparison count as equally large within half a percent


@dataclass(frozen=True)
class ParameterCount:
    """``parameters`` are trainable; ``mola_parameters`` counts a router in every module, as MoLA's tables do."""

    parameters: int
    mola_parameters: int

    def megabytes(self, dtype: str) -> float:
        """Return the size of the trainable parameters in units of 10^6 bytes."""
        return self.parameters * dtype_bytes(dtype) / 1e6


@dataclass(frozen=True)
class EqualRanks:
    """Ranks of a plain LoRA with as many parameters as a schedule; ``difference`` is plain minus schedule."""

    ranks: Mapping[Slot, int]
    parameters: int
    difference: int

    @property
    def relative_difference(self) -> float:
        """The difference as a share of the schedule's parameters."""
        return self.difference / max(1, self.parameters - self.difference)

    @property
    def equal(self) -> bool:
        """Whether the two are within half a percent."""
        return abs(self.relative_difference) <= EQUAL_WITHIN


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one number; InvalidParameterError for a dtype that adapters are not stored in."""
    if dtype not in BYTES:
        raise InvalidParameterError(f"no adapter dtype is called {dtype!r}; there are: {', '.join(BYTES)}")
    return BYTES[dtype]


def module_parameters(shape: ModuleShape, num_experts: int, r: int) -> int:
    """Return the trainable parameters of one module: ``E * r * (in + out) + [E > 1] * E * in``."""
    router = num_experts * shape.in_features if num_experts > 1 else 0
    return num_experts * r * (shape.in_features + shape.out_features) + router


def mola_module_parameters(shape: ModuleShape, num_experts: int, r: int) -> int:
    """Return one module's parameters as MoLA counts them: ``E * r * (in + out) + E * in``."""
    return num_experts * (r * (shape.in_features + shape.out_features) + shape.in_features)


def count_parameters(schedule: ExpertSchedule, shapes: ModuleShapes, *, r: int | None = None) -> ParameterCount:
    """Return what ``schedule`` trains on the modules of ``shapes`` with experts of rank ``r``.

    ``r`` may be None where the schedule sets every rank. Raises InvalidParameterError when no rank is known or when the
    schedule has no entry for a module's layer (a schedule for another model).
    """
    ours = mola = 0
    for shape in shapes.modules:
        experts, _, own_rank = entry_of(schedule, shape.layer, shape.stack, shape.role)
        rank = own_rank if own_rank is not None else r
        if rank is None:
            raise InvalidParameterError("expected a rank r: this schedule sets none")
        ours += module_parameters(shape, experts, rank)
        mola += mola_module_parameters(shape, experts, rank)
    return ParameterCount(ours, mola)


def entry_of(schedule: ExpertSchedule, layer: int, stack: str, role: str) -> tuple[int, int, int | None]:
    """Return experts, top_k and rank (None: the trainer's) of one module.

    Raises InvalidParameterError when the schedule has no such layer or, where modules have their own counts, module.
    """
    for entry in schedule.layers:
        if (entry.layer, entry.stack) == (layer, stack):
            if not entry.modules:
                return entry.num_experts, entry.top_k, entry.rank
            for module in entry.modules:
                if module.role == role:
                    return module.num_experts, module.top_k, module.rank
            roles = ", ".join(module.role for module in entry.modules)
            raise InvalidParameterError(f"the schedule has no {role!r} in layer {Slot(layer, stack)}; it has: {roles}")
    raise InvalidParameterError(
        f"the schedule has no layer {Slot(layer, stack)}; it has {len(schedule.layers)} layers: it was made for a "
        "model of another depth or with other stacks"
    )


def equal_lora_ranks(schedule: ExpertSchedule, shapes: ModuleShapes, *, r: int | None = None) -> EqualRanks:
    """Return the ranks of a plain LoRA with as many parameters as the schedule has with experts of rank ``r``.

    A module's ideal rank is ``E * r + [E > 1] * E * in / (in + out)``: the router's parameters become rank. It is
    rounded down, then up again where the largest fractions are, as long as the totals come nearer.
    """
    target = count_parameters(schedule, shapes, r=r).parameters
    ranks: dict[Slot, int] = {}
    rests: list[tuple[float, int, Slot]] = []
    for position, shape in enumerate(shapes.modules):
        slot, size = Slot(shape.layer, shape.stack, shape.role), shape.in_features + shape.out_features
        experts, _, own_rank = entry_of(schedule, shape.layer, shape.stack, shape.role)
        own = module_parameters(shape, experts, own_rank if own_rank is not None else r or 0)
        ranks[slot] = own // size
        rests.append((-(own % size) / size, position, slot))
    sizes = {Slot(s.layer, s.stack, s.role): s.in_features + s.out_features for s in shapes.modules}
    total = sum(rank * sizes[slot] for slot, rank in ranks.items())
    for rest, _, slot in sorted(rests):
        if rest < 0 and abs(total + sizes[slot] - target) < abs(total - target):
            ranks[slot] += 1
            total += sizes[slot]
    return EqualRanks(ranks, total, total - target)
