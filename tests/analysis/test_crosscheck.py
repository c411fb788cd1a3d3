"""Both other libraries on the same matrices; every known difference provoked once."""

from __future__ import annotations

import logging
import re
import sys
import warnings

import numpy as np
import pytest
import torch

from alphalloc.analysis.crosscheck import Answer, crosscheck, powerlaw_verdict, weightwatcher_verdict
from alphalloc.errors import AnalysisError, MissingExtraError, NothingToAnalyzeError
from alphalloc.fits import ks
from alphalloc.spectra import esd


def weights() -> dict[str, torch.Tensor]:
    """Agreement, dropped eigenvalues, a skipped matrix, small N, a flat spectrum."""
    generator = torch.Generator().manual_seed(0)
    heavy = torch.randn(64, 96, generator=generator) * (torch.arange(1, 65) ** -0.5)[:, None]
    tensors = {
        "heavy": heavy,
        "tiny_scale": heavy * 1.7e-3,
        "narrow": torch.randn(6, 64, generator=generator),
        "low_rank": torch.randn(64, 10, generator=generator) @ torch.randn(10, 64, generator=generator),
        "flat": torch.eye(64),
    }
    return {f"model.layers.0.{name}.weight": tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def checked():
    level, filters, handlers = logging.getLogger().level, list(warnings.filters), list(logging.getLogger().handlers)
    found = crosscheck(weights())
    assert "weightwatcher" not in sys.modules
    assert (logging.getLogger().level, warnings.filters, logging.getLogger().handlers) == (level, filters, handlers)
    return {matrix.name.split(".")[3]: matrix for matrix in found}


def test_where_nothing_differs_both_agree(checked):
    heavy = checked["heavy"]
    assert heavy.weightwatcher_verdict.agrees
    assert heavy.powerlaw_verdict.agrees
    assert heavy.weightwatcher.alpha == pytest.approx(heavy.ours.alpha, rel=1e-6)
    assert heavy.powerlaw.ks_distance == pytest.approx(heavy.ours.ks_distance, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "agrees", "reason"),
    [
        ("tiny_scale", False, r"drops the \d+ eigenvalues up to 1e-05; without them we agree"),
        ("narrow", True, "skips matrices of 6 x 64"),
        ("low_rank", False, "with 10 eigenvalues above 1e-05 it takes another fit, for small N"),
        ("flat", True, "neither has an alpha"),
    ],
)
def test_every_difference_has_its_reason(checked, name, agrees, reason):
    verdict = checked[name].weightwatcher_verdict
    assert verdict.agrees is agrees
    assert re.search(reason, verdict.reason), verdict.reason


def test_scale_does_not_matter_to_powerlaw(checked):
    assert checked["tiny_scale"].powerlaw_verdict.agrees
    assert checked["tiny_scale"].ours.alpha == pytest.approx(checked["heavy"].ours.alpha, rel=1e-6)


def test_repeated_eigenvalues_are_named():
    spectrum = esd(np.diag(np.sqrt(np.repeat(np.arange(1.0, 33.0), 2))))
    verdict = powerlaw_verdict(spectrum, ks(spectrum.eigs), Answer(1.0, 1.0, 0.5))
    assert not verdict.agrees
    assert "repeated" in verdict.reason


def test_an_unknown_difference_is_not_explained_away():
    spectrum = esd(weights()["model.layers.0.heavy.weight"])
    ours = ks(spectrum.eigs)
    for verdict in (weightwatcher_verdict, powerlaw_verdict):
        found = verdict(spectrum, ours, Answer(ours.alpha * 1.01, ours.xmin, ours.ks_distance + 0.1))
        assert (found.agrees, found.reason) == (False, None)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(
        "alphalloc.analysis.crosscheck.find_spec", lambda name: None if name == "powerlaw" else object()
    )
    with pytest.raises(MissingExtraError, match=r"needs powerlaw: pip install 'alphalloc\[crosscheck\]'"):
        crosscheck(weights())


def test_a_dead_process_is_reported(monkeypatch, tmp_path):
    (tmp_path / "crosscheck_worker.py").write_text("raise SystemExit('out of luck')\n")
    monkeypatch.setattr("alphalloc.analysis.crosscheck.__file__", str(tmp_path / "crosscheck.py"))
    with pytest.raises(AnalysisError, match="process died: out of luck"):
        crosscheck(weights())


def test_nothing_left():
    with pytest.raises(NothingToAnalyzeError, match="matches no matrix"):
        crosscheck(weights(), include=["*nothing*"])
