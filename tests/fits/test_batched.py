"""The estimators on batches: an exact case, the law that every row gives what its own file gives, degenerate rows."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from device_agreement import same_fit
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.fits import FITS
from alphalloc.fits.batched import fit_batch

KINDS = ("pareto", "lognormal", "two humps", "ties", "outlier", "flat middle")


def drawn(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    shape = rng.uniform(1.3, 9.0)
    if kind == "lognormal":
        values = np.exp(shape / 3 * rng.standard_normal(n))
    elif kind == "two humps":
        values = np.exp(np.where(rng.random(n) < 0.5, -shape, 1.0) + 0.5 * rng.standard_normal(n))
    elif kind == "flat middle":
        values = np.concatenate([[0.1], np.ones(n - 2), [50.0]])
    else:
        values = (1 - rng.random(n)) ** (-1 / (shape - 1))
    values = np.sort(np.clip(values, 1e-6, 1e6))
    if kind == "ties":
        values = np.round(values, 1) + 0.1
    if kind == "outlier":
        values[-1] *= 1e4
    return values


def batch(seed: int, n: int, kinds: list[str], zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    rows = np.array([drawn(rng, kind, n) for kind in kinds])
    dropped = rng.integers(0, n + 1, len(kinds)) if zeros else np.zeros(len(kinds), dtype=np.int64)
    for row, count in zip(rows, dropped, strict=True):
        row[:count] = np.sort(1e-20 * rng.standard_normal(count))  # what rounding leaves: either sign
    return torch.from_numpy(rows), torch.from_numpy(dropped)


def test_the_upper_half_by_hand():
    eigs = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]], dtype=torch.float64)
    (fit,) = fit_batch("xmin_median", eigs, torch.tensor([0]))
    assert (fit.xmin, fit.num_tail, fit.status) == (16.0, 4, "ok")
    assert fit.alpha == pytest.approx(1 + 4 / (math.log(2) * (0 + 1 + 2 + 3)), abs=1e-14)
    (quarter,) = fit_batch("hill_fraction", eigs, torch.tensor([0]), fraction=0.26)
    assert quarter.num_tail == 3


@settings(max_examples=EXAMPLES // 5)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 150),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    zeros=st.booleans(),
)
def test_every_row_gives_what_its_own_file_gives(seed, n, kinds, zeros):
    eigs, dropped = batch(seed, n, kinds, zeros)
    for estimator in FITS:
        for row, (ours, values, count) in enumerate(
            zip(fit_batch(estimator, eigs, dropped), eigs.numpy(), dropped.tolist(), strict=True)
        ):
            same_fit(ours, FITS[estimator](values[count:]), (estimator, kinds[row]))


def test_same_candidate_wins_nearly_always():
    """The exception for equal distances stays one: counted here, where nothing is drawn to be tied."""
    excepted = 0
    for seed in range(40):
        eigs, dropped = batch(seed, 180, ["pareto", "lognormal", "two humps"], zeros=False)
        for estimator in FITS:
            for ours, values in zip(fit_batch(estimator, eigs, dropped), eigs.numpy(), strict=True):
                excepted += same_fit(ours, FITS[estimator](values), estimator)
    assert excepted == 0


@pytest.mark.parametrize("estimator", FITS)
def test_degenerate_rows_say_what_their_own_file_says(estimator):
    rows = {
        "zero": (np.zeros(64), 64),
        "identity": (np.ones(64), 0),
        "nearly flat": (np.linspace(1, 1.01, 64), 0),
        "seven kept": (np.concatenate([np.zeros(57), np.arange(1.0, 8.0)]), 57),
        "one value with rounding noise": (np.concatenate([[0.5], 1 + 1e-13 * np.arange(63)]), 0),
        "sound": (np.sort(np.random.default_rng(0).pareto(2, 64)), 0),
    }
    eigs = torch.from_numpy(np.array([values for values, _ in rows.values()]))
    fits = fit_batch(estimator, eigs, torch.tensor([count for _, count in rows.values()]))
    for (name, (values, count)), ours in zip(rows.items(), fits, strict=True):
        same_fit(ours, FITS[estimator](values[count:]), name)
    assert [fit.status for fit in fits[:2]] == ["too_few", "flat_spectrum"]
    assert fits[-1].status == "ok"


def test_a_row_does_not_depend_on_its_company():
    eigs, dropped = batch(7, 120, list(KINDS), zeros=True)
    for estimator in FITS:
        together = fit_batch(estimator, eigs, dropped)
        for row, fit in enumerate(together):
            same_fit(fit_batch(estimator, eigs[row : row + 1], dropped[row : row + 1])[0], fit, estimator)
        assert fit_batch(estimator, eigs, dropped) == together


def test_a_fraction_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"fraction in \(0, 1\], found 1\.5"):
        fit_batch("hill_fraction", torch.ones(1, 20, dtype=torch.float64), torch.tensor([0]), fraction=1.5)
