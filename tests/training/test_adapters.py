"""Adapters of a recipe: MoE-LoRA, and plain LoRA of one rank, of the schedule's total rank, of the same size."""

from __future__ import annotations

from typing import Any

import pytest

from alphalloc.allocation import Budget, ExpertSchedule, allocate_ranks
from alphalloc.errors import AdapterError
from alphalloc.training.adapters import adapt, parameter_table
from alphalloc.training.recipe import AdapterSettings

COUNTS = ExpertSchedule.from_counts([3, 1, 8])
TARGETS = ("q_proj", "v_proj", "down_proj")


def ranks(model: Any) -> dict[str, int]:
    return {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def scales(model: Any) -> set[float]:
    return {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}


def adapted(tiny: Any, schedule: Any = COUNTS, **settings: Any) -> Any:
    return adapt(tiny.llama(), AdapterSettings(r=4, lora_alpha=6, target_modules=TARGETS, **settings), schedule, seed=0)


def test_moe_has_the_schedules_experts(tiny: Any) -> None:
    model = adapted(tiny, balance="mola")
    config = model.peft_config["default"]
    assert (config.num_experts, config.top_k, config.balance) == ([3, 1, 8], [2, 1, 2], "mola")
    table = parameter_table(model)
    assert [(row.num_experts, row.top_k, row.ranks) for row in table.layers] == [
        (3, 2, (4,)), (1, 1, (4,)), (8, 2, (4,))
    ]  # fmt: skip
    assert sum(row.parameters for row in table.layers) == table.trainable == model.get_nb_trainable_parameters()[0]
    assert table.base == sum(p.numel() for p in tiny.llama().parameters())


def test_uniform_lora_has_one_rank(tiny: Any) -> None:
    model = adapted(tiny, method="lora")
    assert set(ranks(model).values()) == {4}
    assert len(ranks(model)) == 9
    assert scales(model) == {1.5}


def test_the_schedules_total_rank_layer_by_layer(tiny: Any) -> None:
    model = adapted(tiny, method="lora", lora_ranks="schedule")
    assert {(path.split(".")[2], rank) for path, rank in ranks(model).items()} == {("0", 12), ("1", 4), ("2", 32)}
    assert scales(model) == {1.5}


def test_equal_parameters_router_included(tiny: Any) -> None:
    moe = parameter_table(adapted(tiny))
    model = adapted(tiny, method="lora", lora_ranks="equal")
    plain = parameter_table(model)
    assert abs(plain.trainable / moe.trainable - 1) <= 0.005
    # Linear by linear the ideal rank is E r + [E > 1] E in / (in + out); it is missed by less than one.
    shapes = {"q_proj": (32, 32), "v_proj": (32, 16), "down_proj": (48, 32)}
    for path, rank in ranks(model).items():
        experts, (wide, out) = COUNTS.num_experts[int(path.split(".")[2])], shapes[path.rpartition(".")[2]]
        ideal = experts * 4 + (experts > 1) * experts * wide / (wide + out)
        assert abs(rank - ideal) < 1
    assert scales(model) == {1.5}


@pytest.mark.parametrize(
    ("ranks_of", "setting"),
    [
        ("equal", {"rank_mode": "total"}),
        ("equal", {"share_router": "block"}),
        ("schedule", {"rank_mode": "total"}),
    ],
)
def test_ranks_of_another_layout_are_refused(ranks_of: str, setting: dict[str, str], tiny: Any) -> None:
    [(name, value)] = setting.items()
    with pytest.raises(AdapterError, match=f"expected {name} .* beside lora_ranks '{ranks_of}', got '{value}'"):
        adapted(tiny, method="lora", lora_ranks=ranks_of, **setting)


def test_a_shared_router_changes_no_total_rank(tiny: Any) -> None:
    shared = adapted(tiny, method="lora", lora_ranks="schedule", share_router="block")
    assert ranks(shared) == ranks(adapted(tiny, method="lora", lora_ranks="schedule"))


def test_layers_without_experts_are_left_alone(tiny: Any) -> None:
    none = ExpertSchedule.from_counts([2, 0, 2])
    for settings in ({}, {"method": "lora", "lora_ranks": "schedule"}, {"method": "lora", "lora_ranks": "equal"}):
        rows = parameter_table(adapted(tiny, none, **settings)).layers
        assert [row.layer for row in rows] == ["model.layers.0", "model.layers.2"]


def test_a_rank_schedule_trains_as_plain_lora(tiny: Any) -> None:
    schedule = allocate_ranks([3.0, 2.0, 4.0], Budget.ranks(24))
    model = adapted(tiny, schedule, method="lora", lora_ranks="schedule")
    found = {path.split(".")[2]: rank for path, rank in ranks(model).items()}
    assert [found[str(layer)] for layer in range(3)] == list(schedule.ranks)


def test_the_familys_linears_are_the_default(tiny: Any) -> None:
    for settings in (
        AdapterSettings(),
        AdapterSettings(method="lora"),
        AdapterSettings(method="lora", lora_ranks="equal"),
    ):
        model = adapt(tiny.llama(), settings, COUNTS, seed=0)
        names = {name.rpartition(".")[2] for name in model.targeted_module_names}
        assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_all_linear(tiny: Any) -> None:
    for settings in ({}, {"method": "lora"}, {"method": "lora", "lora_ranks": "equal"}):
        model = adapt(tiny.llama(), AdapterSettings(target_modules="all-linear", **settings), COUNTS, seed=0)
        assert len(model.targeted_module_names) == 21


def test_an_adapter_that_does_not_fit_is_refused(tiny: Any) -> None:
    for settings in ({}, {"method": "lora", "lora_ranks": "equal"}):
        with pytest.raises(AdapterError, match="the model has 3 in model.layers, but the schedule has 2"):
            adapted(tiny, ExpertSchedule.from_counts([2, 2]), **settings)
    with pytest.raises(AdapterError, match="no module of the model matches"):
        adapted(tiny, ExpertSchedule.from_counts([2, 2, 2, 2]), method="lora", lora_ranks="schedule")
