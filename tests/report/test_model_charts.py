"""What the charts of a model show, in numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_alphas import made_alphas, made_matrix, made_of

from alphalloc.allocation import Budget, ExpertSchedule, allocate, allocate_ranks
from alphalloc.alphas import EsdHistogram
from alphalloc.report import model_charts
from alphalloc.report.charts import HeatMap, number


def series(chart, name):
    return next(one for one in chart.series if one.name == name)


def test_alpha_by_layer_has_the_means_the_bands_and_a_point_a_role():
    matrices = tuple(
        made_matrix(layer, role).model_copy(
            update={"alpha": alpha, "alpha_low": alpha - 0.1, "alpha_high": alpha + 0.3}
        )
        for layer, role, alpha in [(0, "q_proj", 2.0), (0, "up_proj", 3.0), (1, "q_proj", 4.0), (1, "up_proj", 4.5)]
    )
    chart = model_charts.alpha_by_layer(made_of(matrices))
    assert chart.labels == ("0", "1")
    assert series(chart, "q_proj").y == (2.0, 4.0)
    mean = series(chart, "layer mean")
    assert mean.y == (2.5, 4.25)
    assert mean.low == pytest.approx((2.4, 4.15))
    assert mean.high == pytest.approx((2.8, 4.55))
    assert "from 2.500 at layer 0 to 4.250 at layer 1" in chart.summary


def test_without_bands_there_is_none_and_a_layer_without_alpha_is_a_gap():
    plain = {"alpha_low": None, "alpha_high": None}
    good = made_matrix(0, "q_proj").model_copy(update=plain)
    bad = made_matrix(1, "q_proj").model_copy(update={**plain, "alpha": None, "status": "flat_spectrum"})
    mean = series(model_charts.alpha_by_layer(made_of((good, bad))), "layer mean")
    assert mean.low == mean.high == ()
    assert mean.y == (good.alpha, None)


def test_roles_stand_in_the_order_of_the_data_and_unknown_ones_after():
    alphas = made_alphas(2, roles=("zeta", "up_proj", "k_proj", "q_proj"))
    chart = model_charts.alpha_by_role(alphas)
    assert isinstance(chart, HeatMap)
    assert chart.y_labels == ("q_proj", "k_proj", "up_proj", "zeta")
    assert chart.values[3][1] == alphas.layers[1].roles["zeta"]


def test_experts_of_several_schedules_with_their_ranges():
    alphas = made_alphas(6)
    first = allocate(alphas, 30, confidence=True)
    second = ExpertSchedule.from_counts([5] * 6)
    chart = model_charts.experts_by_layer([first, second])
    assert [one.kind for one in chart.series] == ["bars", "bars"]
    assert chart.series[0].y == first.num_experts
    assert chart.series[0].low == tuple(one.low for one in first.confidence.ranges)
    assert chart.series[1].low == ()
    assert f"alpha_power, 30 experts: 30 in all, {min(first.num_experts)} to {max(first.num_experts)} a layer" in (
        chart.summary
    )


def test_schedules_of_one_name_are_told_apart_by_their_ids():
    alphas = made_alphas(4)
    one, other = allocate(alphas, 20), allocate(alphas, 20, beta=1.0)
    names = model_charts.schedule_names([one, other])
    assert names == (f"alpha_power, 20 experts ({one.id[:9]})", f"alpha_power, 20 experts ({other.id[:9]})")


def test_many_bars_become_lines_and_the_uniform_line_is_the_mean():
    alphas = made_alphas(80)
    schedules = [allocate(alphas, 400, beta=beta) for beta in (0.5, 1.0, 2.0, 3.0)]
    chart = model_charts.experts_by_layer(schedules)
    assert {one.kind for one in chart.series} == {"line"}
    assert model_charts.with_uniform(chart, schedules[0]).series[-1].y == (5.0,) * 80


def test_a_rank_schedule_shows_ranks():
    chart = model_charts.experts_by_layer([allocate_ranks(made_alphas(4), Budget.ranks(64))])
    assert chart.y_title == "ranks"
    assert sum(chart.series[0].y) == 64


def test_spectrum_exact_case():
    """Two decades, one bin each: 9 of 10 eigenvalues in 0.1..1, one in 1..10; the tail starts at 1."""
    histogram = EsdHistogram(log10_low=-1.0, log10_high=1.0, counts=(9, 1))
    matrix = made_matrix(0, "q_proj").model_copy(
        update={"esd_histogram": histogram, "num_eigs": 10, "alpha": 3.0, "xmin": 1.0, "num_tail": 1, "mp_edge": 2.0}
    )
    chart = model_charts.spectrum(matrix)
    eigenvalues, tail = chart.series
    assert eigenvalues.x == pytest.approx((10**-0.5, 10**0.5))
    assert eigenvalues.y == pytest.approx((9 / 10 / 0.9, 1 / 10 / 9))
    assert (tail.x[0], tail.y[0]) == pytest.approx((1.0, 0.1 * 2.0 / 1.0))
    assert tail.y[1] == pytest.approx(0.2 * tail.x[1] ** -3.0)
    assert [(mark.x, mark.name) for mark in chart.marks] == [(1.0, "xmin"), (2.0, "bulk edge of noise")]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.floats(-8, 3), st.floats(0.05, 9))
def test_the_density_integrates_to_one(counts, low, width):
    histogram = EsdHistogram(log10_low=low, log10_high=low + width, counts=counts)
    matrix = made_matrix(0, "q_proj").model_copy(update={"esd_histogram": histogram, "num_eigs": 10**6})
    density = model_charts.spectrum(matrix).series[0].y
    edges = [10 ** (low + width / len(counts) * i) for i in range(len(counts) + 1)]
    area = sum((y or 0.0) * (b - a) for y, a, b in zip(density, edges, edges[1:], strict=False))
    assert area == pytest.approx(1.0 if sum(counts) else 0.0, rel=1e-6)


@pytest.mark.parametrize(
    "damage",
    [
        {"xmin": 0.0}, {"xmin": -3.0}, {"xmin": 1e-320}, {"alpha": 200.0, "xmin": 1e-9}, {"alpha": 0.5},
        {"mp_edge": -1.0}, {"num_tail": -4}, {"num_eigs": 0},
        {"esd_histogram": EsdHistogram(log10_low=-330, log10_high=310, counts=(1, 1))},
        {"esd_histogram": EsdHistogram(log10_low=0.0, log10_high=1e-9, counts=(0, 0))},
    ],
)  # fmt: skip
def test_any_document_can_be_drawn(damage):
    chart = model_charts.spectrum(made_matrix(0, "q_proj").model_copy(update=damage))
    values = [v for one in chart.series for of in (one.x, one.y) for v in of if v is not None]
    assert all(math.isfinite(value) and value > 0 for value in values)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=64, max_size=64))
def test_merging_keeps_every_eigenvalue(counts):
    histogram = EsdHistogram(log10_low=0.0, log10_high=1.0, counts=counts)
    merged = model_charts.merged(histogram, sum(counts))
    assert sum(merged.counts) == sum(counts)
    assert len(merged.counts) in (8, 16, 32, 64)
    assert len(merged.counts) == 8 or sum(counts) >= model_charts.MIN_PER_BIN * len(merged.counts)


def test_documents_side_by_side_are_joined_on_their_layers():
    first, second = made_alphas(4), made_alphas(6, estimator="ks")
    chart = model_charts.estimators([first, second], ["a", "b"])
    assert chart.labels == ("0", "1", "2", "3")
    assert chart.series[1].y == tuple(layer.alpha for layer in second.layers[:4])
    turned = model_charts.estimators([second, first], ["b", "a"])
    assert turned.series[1].y[4:] == (None, None)


def test_numbers_as_people_read_them():
    assert [number(value) for value in (None, 3.0, 2.71828, 0.00012346, 1234567.0)] == [
        "–", "3", "2.718", "0.0001235", "1.235e+06",
    ]  # fmt: skip
