"""Parameters and the budgets made of them: published tables, exhaustive search, what cannot be bought."""

from __future__ import annotations

import math
from typing import Any

import allocation_brute as brute
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.allocation import (
    Adapter,
    Budget,
    ExpertSchedule,
    ModuleShape,
    ModuleShapes,
    Slot,
    allocate,
    count_parameters,
    equal_lora_ranks,
    external_scores,
)
from alphalloc.errors import InfeasibleBudgetError, InvalidBudgetError, InvalidParameterError

LLAMA2_7B = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096)),
    **dict.fromkeys(("gate_proj", "up_proj"), (4096, 11008)),
    "down_proj": (11008, 4096),
}
MISTRAL_7B = {
    **dict.fromkeys(("q_proj", "o_proj"), (4096, 4096)),
    **dict.fromkeys(("k_proj", "v_proj"), (4096, 1024)),
    **dict.fromkeys(("gate_proj", "up_proj"), (4096, 14336)),
    "down_proj": (14336, 4096),
}
GEMMA_7B = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), (3072, 4096)),
    "o_proj": (4096, 3072),
    **dict.fromkeys(("gate_proj", "up_proj"), (3072, 24576)),
    "down_proj": (24576, 3072),
}
SMOLLM2 = {"q_proj": (576, 576), "v_proj": (576, 192)}


# Published tables (arXiv 2402.08562 and its NAACL version).


@pytest.mark.parametrize(
    ("sizes", "layers", "total", "expected"),
    [
        (LLAMA2_7B, 32, 160, 105_635_840),
        (LLAMA2_7B, 32, 256, 169_017_344),
        (LLAMA2_7B, 32, 128, 84_508_672),
        (MISTRAL_7B, 32, 80, 55_541_760),
        (MISTRAL_7B, 32, 160, 111_083_520),
        (MISTRAL_7B, 32, 224, 155_516_928),
        (GEMMA_7B, 28, 140, 131_174_400),
        (GEMMA_7B, 28, 160, 149_913_600),
    ],
)
def test_molas_tables(sizes: dict[str, tuple[int, int]], layers: int, total: int, expected: int) -> None:
    shapes = ModuleShapes.uniform(layers, sizes)
    for rule in ("uniform", "mola_inverted_triangle"):
        count = count_parameters(allocate([3.0] * layers, total, rule=rule), shapes, r=8)
        assert count.mola_parameters == expected  # whatever the pattern
    assert ModuleShapes.uniform(1, LLAMA2_7B).only(["q_proj"]).roles == ("q_proj",)


def test_plain_lora_of_rank_64() -> None:
    lora = ExpertSchedule.from_counts([1] * 32)
    assert count_parameters(lora, ModuleShapes.uniform(32, LLAMA2_7B), r=64).parameters == 159_907_840


def test_a_single_expert_has_no_router() -> None:
    shapes = ModuleShapes.uniform(2, {"q_proj": (10, 4)})
    count = count_parameters(ExpertSchedule.from_counts([1, 3]), shapes, r=2)
    assert count.parameters == 1 * 2 * 14 + (3 * 2 * 14 + 3 * 10)
    assert count.mola_parameters == count.parameters + 10
    assert count_parameters(ExpertSchedule.from_counts([0, 1]), shapes, r=2).parameters == 28
    assert count.megabytes("bfloat16") == count.parameters * 2 / 1e6


def test_plain_lora_with_as_many_parameters() -> None:
    shapes = ModuleShapes.uniform(30, SMOLLM2)
    equal = equal_lora_ranks(allocate([3.0] * 30, 240, rule="uniform"), shapes, r=4)
    assert {slot.role: rank for slot, rank in equal.ranks.items()} == {"q_proj": 36, "v_proj": 38}
    assert (equal.parameters, equal.difference) == (2_119_680, 0)
    assert equal.equal


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    sizes=st.lists(st.tuples(st.integers(8, 4096), st.integers(8, 4096)), min_size=1, max_size=4),
    r=st.integers(1, 64),
)
@settings(max_examples=EXAMPLES)
def test_equal_ranks_differ_by_less_than_half_a_module(counts: list[int], sizes: list, r: int) -> None:
    shapes = ModuleShapes.uniform(len(counts), {f"m{i}": size for i, size in enumerate(sizes)})
    schedule = ExpertSchedule.from_counts(counts)
    equal = equal_lora_ranks(schedule, shapes, r=r)
    wanted = count_parameters(schedule, shapes, r=r).parameters
    plain = sum(equal.ranks[Slot(s.layer, "", s.role)] * (s.in_features + s.out_features) for s in shapes.modules)
    assert plain == equal.parameters == wanted + equal.difference
    # Among all ways to round each rank up or down, the greedy one is within half of the largest module.
    assert abs(equal.difference) <= max(i + o for i, o in sizes)
    assert equal.equal is (abs(equal.difference) <= 0.005 * wanted)


# Budgets.


@st.composite
def purchases(draw: st.DrawFn) -> dict[str, Any]:
    """A budget in parameters for layers of different shapes."""
    layers = draw(st.integers(1, 5))
    sizes = st.tuples(st.integers(8, 30), st.integers(8, 30))
    modules = tuple(
        ModuleShape(layer, "", f"m{i}", *draw(sizes)) for layer in range(layers) for i in range(draw(st.integers(1, 2)))
    )
    r = draw(st.integers(1, 4))
    constraints: dict[str, Any] = {}
    if layers > 2 and draw(st.booleans()):
        constraints["groups"] = [["0", "2"]]
    return {
        "alphas": draw(st.lists(st.floats(1.1, 9), min_size=layers, max_size=layers)),
        "budget": Budget.parameters(draw(st.integers(1, 3000)), Adapter(ModuleShapes(modules), r)),
        "rounding": draw(st.sampled_from(["largest_remainder", "min1_largest_remainder"])),
        "max_experts": draw(st.none() | st.integers(2, 9)),
        "constraints": constraints or None,
    }


@given(call=purchases())
@settings(max_examples=EXAMPLES)
def test_the_largest_total_that_the_budget_pays(call: dict[str, Any]) -> None:
    """Against trying every total: costs are not monotone, so a bisection alone would not do."""
    budget, layers = call["budget"], len(call["alphas"])
    adapter = budget.adapter
    assert adapter is not None

    def price(total: int) -> int | None:
        try:
            schedule = allocate(**{**call, "budget": total})
        except InfeasibleBudgetError:
            return None
        return count_parameters(schedule, adapter.shapes, r=adapter.r).parameters

    cheapest = min(adapter.r * (s.in_features + s.out_features) for s in adapter.shapes.modules)
    most = layers * call["max_experts"] if call["max_experts"] else layers + budget.amount // cheapest
    best = brute.largest_affordable(price, layers, most, budget.amount)
    try:
        schedule = allocate(**call)
    except InfeasibleBudgetError:
        assert best is None or best == most  # below the minima, or more than the maxima can hold
        return
    assert schedule.totals.num_experts == best
    assert schedule.adapter is not None
    assert schedule.adapter.num_parameters == price(best) <= budget.amount
    assert schedule.num_experts == allocate(**{**call, "budget": best}).num_experts


def test_megabytes_are_parameters_of_a_dtype() -> None:
    adapter = Adapter.on(ModuleShapes.uniform(32, LLAMA2_7B))
    alphas = [2.0 + i / 10 for i in range(32)]
    half = allocate(alphas, Budget.megabytes(200, adapter, dtype="bfloat16"))
    assert half.num_experts == allocate(alphas, Budget.parameters(100_000_000, adapter)).num_experts
    assert half.budget.model_dump() == {"unit": "megabytes", "total": 200, "dtype": "bfloat16"}
    assert half.num_experts == allocate(alphas, Budget.megabytes(400.0, adapter)).num_experts
    assert ExpertSchedule.from_json(half.to_json()) == half


def test_experts_with_an_adapter_are_counted() -> None:
    adapter = Adapter.on(ModuleShapes.uniform(32, LLAMA2_7B), r=8)
    schedule = allocate([3.0] * 32, Budget.experts(160, adapter))
    assert schedule.adapter is not None
    assert schedule.adapter.mola_parameters == 105_635_840
    assert schedule.num_experts == allocate([3.0] * 32, 160).num_experts


def test_parameters_by_module() -> None:
    shapes = ModuleShapes.uniform(4, SMOLLM2)
    scores = external_scores({Slot(s.layer, "", s.role): 1.0 + s.layer for s in shapes.modules})
    schedule = allocate(scores, Budget.parameters(300_000, Adapter(shapes, 4)), level="module")
    assert schedule.adapter is not None
    assert schedule.adapter.num_parameters == count_parameters(schedule, shapes, r=4).parameters <= 300_000


def test_what_cannot_be_bought_names_what_can() -> None:
    adapter = Adapter.on(ModuleShapes.uniform(32, LLAMA2_7B))
    with pytest.raises(InfeasibleBudgetError, match="below the minima, which need 19988480 parameters; raise"):
        allocate([3.0] * 32, Budget.parameters(10**6, adapter))
    with pytest.raises(InfeasibleBudgetError, match="above the maxima, which need 169017344 parameters"):
        allocate([3.0] * 32, Budget.parameters(10**9, adapter), max_experts=8)
    exactly = allocate([3.0] * 32, Budget.parameters(19_988_480, adapter))
    assert exactly.num_experts == (1,) * 32


@pytest.mark.timeout(10)
def test_a_huge_budget_is_no_wait() -> None:
    adapter = Adapter.on(ModuleShapes.uniform(32, LLAMA2_7B))
    schedule = allocate([2.0 + i / 10 for i in range(32)], Budget.parameters(10**12, adapter))
    assert schedule.adapter is not None
    assert 10**12 - 10**6 < schedule.adapter.num_parameters <= 10**12


@pytest.mark.parametrize("bad", [True, 0, -1, 2.5, "8", math.nan, None, 10**16])
def test_what_is_no_number_of_parameters(bad: Any) -> None:
    with pytest.raises(InvalidBudgetError, match="a budget in parameters"):
        allocate([3.0] * 4, Budget.parameters(bad, Adapter.on(ModuleShapes.uniform(4, SMOLLM2))))


@pytest.mark.parametrize("bad", [True, 0, -1, "8", math.nan, math.inf, None, 1e-9, 1e17])
def test_what_is_no_number_of_megabytes(bad: Any) -> None:
    with pytest.raises(InvalidBudgetError, match="megabytes"):
        allocate([3.0] * 4, Budget.megabytes(bad, Adapter.on(ModuleShapes.uniform(4, SMOLLM2))))


def test_budgets_that_lack_something() -> None:
    adapter = Adapter.on(ModuleShapes.uniform(4, SMOLLM2))
    with pytest.raises(InvalidParameterError, match="no adapter dtype is called 'int8'; there are: float32"):
        allocate([3.0] * 4, Budget.megabytes(1, adapter, dtype="int8"))
    with pytest.raises(InvalidBudgetError, match="needs an adapter: the rank and the module shapes"):
        allocate([3.0] * 4, Budget(10**6, "parameters"))
    with pytest.raises(InvalidBudgetError, match="needs an adapter with a rank r"):
        allocate([3.0] * 4, Budget.parameters(10**6, Adapter(adapter.shapes, None)))
    with pytest.raises(InvalidBudgetError, match="no budget unit is called 'flops'; there are: experts"):
        allocate([3.0] * 4, Budget(10**6, "flops"))
    with pytest.raises(InvalidBudgetError, match="is one of a rank schedule: use allocate_ranks"):
        allocate([3.0] * 4, Budget.ranks(64))
    with pytest.raises(InvalidParameterError, match="rounding 'reference' takes a budget in experts"):
        allocate([3.0] * 4, Budget.parameters(10**6, adapter), rounding="reference")
    for bad in (0, -1, True, 2.5):
        with pytest.raises(InvalidParameterError, match="the rank r must be a positive whole number"):
            Adapter.on(adapter.shapes, r=bad)


# Shapes.


def test_shapes_of_another_model_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"the adapter has a module 4\.q_proj, for which there is no score"):
        allocate([3.0] * 4, Budget.experts(20, Adapter.on(ModuleShapes.uniform(5, SMOLLM2))))
    with pytest.raises(InvalidParameterError, match="the adapter has no module for 3, which has a score"):
        allocate([3.0] * 4, Budget.experts(20, Adapter.on(ModuleShapes.uniform(3, SMOLLM2))))
    with pytest.raises(InvalidParameterError, match="the schedule has no layer 4; it has 4 layers"):
        count_parameters(allocate([3.0] * 4, 20), ModuleShapes.uniform(5, SMOLLM2), r=8)
    with pytest.raises(InvalidParameterError, match="expected a rank r: this schedule sets none"):
        count_parameters(allocate([3.0] * 4, 20), ModuleShapes.uniform(4, SMOLLM2))


def test_shapes_that_are_none() -> None:
    with pytest.raises(InvalidParameterError, match="at least one module"):
        ModuleShapes(())
    with pytest.raises(InvalidParameterError, match=r"encoder\.0\.q is listed twice"):
        ModuleShapes((ModuleShape(0, "encoder", "q", 4, 4), ModuleShape(0, "encoder", "q", 4, 4)))
    with pytest.raises(InvalidParameterError, match=r"0\.q: expected positive sizes, found 0 x 4"):
        ModuleShapes((ModuleShape(0, "", "q", 0, 4),))
    with pytest.raises(
        InvalidParameterError, match="no module has the role 'x_proj'; the model's roles: q_proj, v_proj"
    ):
        ModuleShapes.uniform(2, SMOLLM2).only(["q_proj", "x_proj"])
    with pytest.raises(InvalidParameterError, match="no module has the role ''"):
        ModuleShapes.uniform(2, SMOLLM2).only([])


def test_shapes_of_matrices() -> None:
    class Matrix:
        def __init__(self, layer: int, role: str, shape: tuple[int, int]) -> None:
            self.layer, self.stack, self.role, self.shape = layer, "", role, shape

    shapes = ModuleShapes.of_matrices([Matrix(-1, "lm_head", (100, 8)), Matrix(0, "v_proj", (192, 576))])
    assert shapes.modules == (ModuleShape(0, "", "v_proj", 576, 192),)
