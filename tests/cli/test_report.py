"""`alphalloc report`: from saved documents to a page and a picture."""

from __future__ import annotations

import pytest
from made_alphas import made_alphas

from alphalloc.allocation import allocate
from alphalloc.report import picture_svg, report_html


@pytest.fixture
def saved(tmp_path):
    alphas = made_alphas(3)
    alphas.save(tmp_path / "alphas.json")
    made_alphas(3, estimator="ks").save(tmp_path / "ks.json")
    allocate(alphas, 15).save(tmp_path / "schedule.json")
    return alphas


def test_the_page_is_that_of_the_library_in_whatever_order_files_are_given(run, saved, tmp_path):
    done = run("report", "schedule.json", "alphas.json", "ks.json", "--light", "-o", "report.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote report.html" in done.stderr
    expected = report_html(
        saved,
        [allocate(saved, 15)],
        others=[made_alphas(3, estimator="ks")],
        light=True,
        files=["alphas.json", "ks.json", "schedule.json"],
    )
    assert (tmp_path / "report.html").read_text() == expected


def test_without_an_output_the_page_goes_to_stdout(run, saved):
    done = run("report", "alphas.json", "--light", "--quiet")
    assert done.returncode == 0
    assert done.stdout.startswith("<!doctype html>")
    assert done.stderr == ""


def test_a_live_page_and_a_picture_in_one_run(run, saved, tmp_path):
    done = run("report", "alphas.json", "schedule.json", "-o", "report.html", "--picture", "alpha.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "alpha.svg").read_text() == picture_svg(saved, [allocate(saved, 15)])
    assert "Plotly" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule.json"], "a report needs the alphas"),
        (["missing.json"], "missing.json: cannot be read as a JSON document"),
        (["odd.json"], "odd.json: expected an alphas document or a schedule, found kind 'other'"),
        (["list.json"], "list.json: expected an alphas document or a schedule, found kind None"),
        (["alphas.json", "-o", "alphas.json"], "would overwrite the input alphas.json"),
        (["alphas.json", "--light", "--picture", "a.svg"], "drop --light or give -o as well"),
        (["alphas.json", "empty"], "a report is of a model or of a training"),
        (["empty"], "empty: expected a training's folder"),
    ],
)
def test_what_is_no_source_is_refused(run, saved, tmp_path, arguments, message):
    (tmp_path / "odd.json").write_text('{"kind": "other"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty").mkdir()
    done = run("report", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
