"""Static pictures: well-formed, in the right place, and safe whatever the names are."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_alphas import made_alphas, made_matrix, made_of

from alphalloc.allocation import allocate
from alphalloc.report import axes, model_charts, svg
from alphalloc.report.charts import Chart, HeatMap, Series

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def line(*y: float | None, **fields: object) -> Chart:
    given = {"labels": tuple(map(str, range(len(y)))), **fields}
    return Chart("key", "title", "summary", "x", "y", (Series("one", y),), **given)


def test_an_axis_puts_its_ends_at_its_ends():
    axis = axes.Axis(2.0, 4.0, 100.0, 300.0)
    assert (axis.at(2.0), axis.at(3.0), axis.at(4.0)) == (100.0, 200.0, 300.0)
    logarithmic = axes.Axis(1.0, 100.0, 0.0, 10.0, log=True)
    assert logarithmic.at(10.0) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 8.0, ["0", "2", "4", "6", "8"]), (1.9, 3.1, ["2.0", "2.2", "2.4", "2.6", "2.8", "3.0"])],
)
def test_ticks_are_round(low, high, expected):
    assert [text for _, text in axes.Axis(low, high, 0, 1).ticks()] == expected


def test_logarithmic_ticks():
    assert [text for _, text in axes.Axis(0.9e-5, 1.1e3, 0, 1, log=True).ticks()] == [
        "10⁻⁵",
        "10⁻³",
        "0.1",
        "10",
        "1000",
    ]
    assert [text for _, text in axes.Axis(1.5, 30.0, 0, 1, log=True).ticks()] == ["2", "5", "10", "20"]


def test_bars_stand_on_zero_and_reach_their_values():
    chart = Chart(
        "key",
        "title",
        "summary",
        "layer",
        "experts",
        (Series("a", (2.0, 4.0), kind="bars"),),
        labels=("0", "1"),
        from_zero=True,
    )
    bars = [one for one in parsed(svg.picture(chart)).iter("rect") if "x" in one.attrib]
    heights = [float(bar.get("height", "nan")) for bar in bars]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    bottoms = {round(float(bar.get("y", "nan")) + float(bar.get("height", "nan")), 0) for bar in bars}
    assert len(bottoms) == 1


def test_a_gap_breaks_the_line():
    paths = [one.get("d", "") for one in parsed(svg.picture(line(1.0, 2.0, None, 3.0, 4.0))).iter("path")]
    assert any(path.count("M") == 2 and path.count("L") == 2 for path in paths)


def test_every_chart_of_a_model_is_well_formed_and_named():
    alphas = made_alphas(12)
    schedule = allocate(alphas, 60, confidence=True)
    charts = [
        model_charts.alpha_by_layer(alphas),
        model_charts.alpha_by_role(alphas),
        model_charts.with_uniform(model_charts.experts_by_layer([schedule]), schedule),
        model_charts.spectrum(alphas.matrices[0]),
    ]
    for chart in charts:
        root = parsed(svg.picture(chart))
        assert root.get("role") == "img"
        assert root.get("aria-label") == f"{chart.title}. {chart.summary}"
    whole = svg.standalone(charts)
    assert whole.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert "prefers-color-scheme:dark" in whole
    assert [chart.title for chart in charts] == [
        text for text in texts(parsed(whole)) if text in {c.title for c in charts}
    ]


def test_names_are_text_never_markup():
    evil = '"><script>alert(1)</script>&'
    matrix = made_matrix(0, evil).model_copy(update={"name": evil})
    alphas = made_of((matrix,), model=evil)
    for chart in (
        model_charts.alpha_by_layer(alphas),
        model_charts.alpha_by_role(alphas),
        model_charts.spectrum(matrix),
    ):
        picture = svg.picture(chart)
        assert "<script" not in picture
        assert not list(parsed(picture).iter("script"))


@settings(max_examples=80)
@given(st.lists(st.none() | FINITE, min_size=1, max_size=12))
def test_any_values_can_be_drawn(values):
    root = parsed(svg.picture(line(*values)))
    for element in root.iter():
        for name in ("cx", "cy", "x", "y", "width", "height"):
            if name in element.attrib:
                assert math.isfinite(float(element.attrib[name]))


def test_a_heat_map_has_a_cell_a_value_coloured_from_low_to_high():
    chart = HeatMap("k", "t", "s", "x", "y", ("0", "1"), ("a", "b"), ((1.0, 2.0), (None, 3.0)), "v")
    cells = [one.get("fill") for one in parsed(svg.picture(chart)).iter("rect")][:3]
    assert cells == [svg.scale_colour(0.0), svg.scale_colour(0.5), svg.scale_colour(1.0)]
    assert (svg.scale_colour(0.0), svg.scale_colour(1.0)) == ("#440154", "#fde725")


def test_nothing_to_draw_says_so():
    assert "nothing to draw" in texts(parsed(svg.picture(line(None, None))))
