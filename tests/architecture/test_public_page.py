"""The public page is small and pinned: a new name is a decision."""

from __future__ import annotations

import inspect

import pytest

import alphalloc

PAGE = [
    "Budget",
    "ExpertSchedule",
    "LayerAlpha",
    "MatrixAlpha",
    "ModelAlphas",
    "Progress",
    "SpectraCache",
    "allocate",
    "analyze",
]


def test_the_page_is_pinned():
    assert alphalloc.__all__ == PAGE
    assert set(PAGE) <= set(dir(alphalloc))


@pytest.mark.parametrize("name", PAGE)
def test_every_name_resolves_and_is_documented(name):
    assert inspect.getdoc(getattr(alphalloc, name))


@pytest.mark.parametrize("room", ["allocation", "checkpoint", "errors", "fits", "peft", "spectra"])
def test_rooms_resolve_as_attributes(room):
    assert getattr(alphalloc, room).__name__ == f"alphalloc.{room}"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        alphalloc.analyse  # noqa: B018


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert alphalloc.__version__ == version("alphalloc")


def test_signatures_that_others_call():
    analyze = inspect.signature(alphalloc.analyze).parameters
    assert next(iter(analyze)) == "model"
    assert {name: analyze[name].default for name in ("estimator", "revision", "device", "cache")} == {
        "estimator": "xmin_peak_robust",
        "revision": None,
        "device": "auto",
        "cache": True,
    }
    allocate = inspect.signature(alphalloc.allocate).parameters
    assert list(allocate)[:2] == ["alphas", "budget"]
    defaults = {"rule": "alpha_power", "beta": 2.5, "rounding": "largest_remainder", "min_experts": 1}
    defaults |= {"max_experts": None, "top_k": 2}
    assert {name: allocate[name].default for name in defaults} == defaults
