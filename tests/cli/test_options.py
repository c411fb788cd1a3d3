"""The options say what the library does by default, and a preset contradicts nobody in silence."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import alphalloc
from alphalloc.allocation import DEFAULT_EXPERTS_PER_LAYER, PAPERS
from alphalloc.cli import analyze as analyze_command
from alphalloc.cli.app import build_app
from alphalloc.cli.options import AllocationOptions, with_paper
from alphalloc.errors import InfeasibleBudgetError, InvalidParameterError


def test_help_states_the_librarys_defaults() -> None:
    text = " ".join(CliRunner().invoke(build_app(), ["analyze", "--help"], env={"COLUMNS": "200"}).output.split())
    allocate = inspect.signature(alphalloc.allocate).parameters
    for name in ("rule", "beta", "rounding", "min_experts", "top_k"):
        option = text.split(f"--{name.replace('_', '-')} ")[1]
        assert option.split("[default: ")[1].split("]")[0] == str(allocate[name].default), name
    analyze = inspect.signature(alphalloc.analyze).parameters
    for name in ("estimator", "hill_fraction", "device"):
        option = text.split(f"--{name.replace('_', '-')} ")[1]
        assert option.split("[default: ")[1].split("]")[0] == str(analyze[name].default), name
    assert f"[default: {DEFAULT_EXPERTS_PER_LAYER} x layers]" in text


def test_both_commands_take_the_same_allocation_options() -> None:
    from alphalloc.cli import allocate as allocate_command

    shared = {*AllocationOptions.__dataclass_fields__, "paper", "as_json", "quiet"}
    for command in (analyze_command.analyze, allocate_command.allocate):
        assert shared <= set(inspect.signature(command).parameters)


def test_nothing_given_is_the_library() -> None:
    assert AllocationOptions().allocate([2.0, 3.0, 2.5]) == alphalloc.allocate([2.0, 3.0, 2.5], 15)


def test_paper_fills_what_was_not_given() -> None:
    options, estimator = with_paper(AllocationOptions(experts=9, rounding="reference"), None, "alphalora")
    assert (options.experts, options.rule, options.beta, options.rounding) == (9, "alpha_power", 2.5, "reference")
    assert estimator == PAPERS["alphalora"]["estimator"]
    assert with_paper(AllocationOptions(beta=3.0), "ks", None) == (AllocationOptions(beta=3.0), "ks")


@pytest.mark.parametrize(
    ("options", "estimator"),
    [
        (AllocationOptions(beta=2.0), None),
        (AllocationOptions(rule="uniform"), None),
        (AllocationOptions(rounding="largest_remainder"), None),
        (AllocationOptions(), "xmin_peak_robust"),
    ],
)
def test_paper_refuses_contradictions(options: AllocationOptions, estimator: str | None) -> None:
    with pytest.raises(InvalidParameterError, match=r"--paper alphalora means .* drop one of the two"):
        with_paper(options, estimator, "alphalora")


@given(
    layers=st.integers(1, 40),
    experts=st.integers(1, 200),
    low=st.integers(0, 4),
    high=st.none() | st.integers(4, 9),
    rounding=st.sampled_from([None, "largest_remainder", "reference"]),
    alphas=st.data(),
)
def test_rehearsal_refuses_nothing_that_works(
    layers: int, experts: int, low: int, high: int | None, rounding: str | None, alphas: st.DataObject
) -> None:
    options = AllocationOptions(experts, None, None, rounding, low, high)
    scores = alphas.draw(st.lists(st.floats(1.5, 6), min_size=layers, max_size=layers))
    try:
        options.allocate(scores)
    except InfeasibleBudgetError:
        return
    options.rehearse(layers)


def test_rehearsal_refuses_what_never_works() -> None:
    with pytest.raises(InfeasibleBudgetError, match="below 4 layers"):
        AllocationOptions(experts=3, rounding="reference").rehearse(4)
