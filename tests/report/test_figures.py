"""The plotly figures: valid, the same numbers as the static pictures, escaped, and an error without plotly."""

from __future__ import annotations

import json
import subprocess
import sys

import plotly.graph_objects as go
import pytest
from made_alphas import made_alphas, made_matrix, made_of

from alphalloc.allocation import allocate
from alphalloc.report import figures, model_charts

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def alphas():
    return made_alphas(6)


def test_each_figure_is_a_plotly_figure(alphas):
    made = [
        figures.alpha_by_layer(alphas),
        figures.alpha_by_role(alphas),
        figures.experts_by_layer(allocate(alphas, 30, confidence=True), allocate(alphas, 30, rule="uniform")),
        figures.spectrum(alphas.matrices[0]),
        figures.estimators(alphas, made_alphas(6, estimator="ks")),
    ]
    for figure in made:
        assert isinstance(figure, go.Figure)
        assert figure.layout.title.text
        assert go.Figure(json.loads(figure.to_json())).data  # survives what W&B and MLflow store


def test_a_matrix_without_a_histogram_has_no_figure(alphas):
    assert figures.spectrum(alphas.matrices[0].model_copy(update={"esd_histogram": None})) is None


def test_the_band_goes_up_one_end_and_back_the_other(alphas):
    band, mean = figures.alpha_by_layer(alphas).data[-2:]
    low, high = model_charts.layer_bands(alphas)
    assert mean.name == "layer mean"
    assert list(band.y) == [*high, *reversed(low)]
    assert band.fill == "toself"


def test_whiskers_are_distances_from_the_value(alphas):
    schedule = allocate(alphas, 30, confidence=True)
    bars = figures.experts_by_layer(schedule).data[0]
    assert [y + up for y, up in zip(bars.y, bars.error_y.array, strict=True)] == [
        one.high for one in schedule.confidence.ranges
    ]
    assert [y - down for y, down in zip(bars.y, bars.error_y.arrayminus, strict=True)] == [
        one.low for one in schedule.confidence.ranges
    ]


def test_a_mark_on_a_logarithmic_axis_stands_where_plotly_wants_it():
    matrix = made_matrix(0, "q_proj").model_copy(update={"xmin": 100.0})
    figure = figures.spectrum(matrix)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.shapes[0].x0 == 100.0
    assert figure.layout.annotations[0].x == 2.0


def test_names_are_escaped_for_plotly_which_reads_markup():
    matrix = made_matrix(0, EVIL).model_copy(update={"name": EVIL})
    for figure in (figures.alpha_by_layer(made_of((matrix,))), figures.alpha_by_role(made_of((matrix,)))):
        assert "<script" not in figure.to_json().replace("\\u003c", "<")
    assert "&lt;script" in figures.spectrum(matrix).layout.title.text


def test_without_plotly_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['plotly'] = None; sys.path.insert(0, 'tests/support')\n"
        "from made_alphas import made_alphas\nfrom alphalloc.report import figures, report_html\n"
        "from alphalloc.errors import MissingExtraError\nalphas = made_alphas(2)\n"
        "assert '<script' not in report_html(alphas, light=True)\n"
        "for make in (figures.alpha_by_layer, report_html):\n"
        "    try:\n        make(alphas)\n        raise SystemExit(f'{make} raised nothing')\n"
        "    except MissingExtraError as exc:\n        assert \"pip install 'alphalloc[report]'\" in str(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
