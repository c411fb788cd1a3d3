"""Confidence: no error gives no change, the law of its draws, a naive re-derivation, determinism."""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from alphalloc.allocation import AnalysisRef, ExpertSchedule, LayerRef, ModelRef, allocate
from alphalloc.allocation.confidence import UncertainAlpha, uncertain_alphas
from alphalloc.allocation.slots import Slot
from alphalloc.errors import InvalidParameterError


@dataclass(frozen=True)
class Matrix:
    layer: int
    alpha: float | None
    num_tail: int
    role: str = "q"
    stack: str = ""
    sigma: float | None = None
    stability_band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Analysis:
    per_layer: tuple[float, ...]
    matrices: tuple[Matrix, ...]
    notes: tuple[str, ...] = ()
    model_ref: ModelRef | None = None
    analysis_ref: AnalysisRef | None = field(default_factory=lambda: AnalysisRef(estimator="ks"))

    @property
    def layer_refs(self) -> tuple[LayerRef, ...]:
        return tuple(LayerRef(layer=i) for i in range(len(self.per_layer)))


def analysis(alphas: list[float], num_tail: int) -> Analysis:
    return Analysis(tuple(alphas), tuple(Matrix(i, alpha, num_tail) for i, alpha in enumerate(alphas)))


ALPHAS = [2.0, 2.6, 3.1, 4.4]


def test_no_error_changes_nothing() -> None:
    schedule = allocate(analysis(ALPHAS, 10**16), 40, confidence=True)
    assert schedule.confidence is not None
    assert (schedule.confidence.draws, schedule.confidence.seed, schedule.confidence.changed) == (1000, 0, 0.0)
    assert [(r.low, r.high) for r in schedule.confidence.ranges] == [(n, n) for n in schedule.num_experts]
    assert schedule.warnings == ()
    assert schedule.num_experts == allocate(ALPHAS, 40).num_experts


def test_much_error_is_a_warning() -> None:
    schedule = allocate(analysis(ALPHAS, 8), 40, confidence=True)
    assert schedule.confidence is not None
    assert schedule.confidence.changed > 0.9
    assert "draws within the estimator's own error change the schedule" in schedule.warnings[0]
    for n, spread in zip(schedule.num_experts, schedule.confidence.ranges, strict=True):
        assert spread.low <= n <= spread.high
    assert ExpertSchedule.from_json(schedule.to_json()) == schedule


def test_the_warning_comes_above_one_half() -> None:
    for tail in (300, 1000, 3000, 10_000, 100_000):
        schedule = allocate(analysis(ALPHAS, tail), 40, confidence=True)
        assert schedule.confidence is not None
        assert bool(schedule.warnings) is (schedule.confidence.changed > 0.5)


def test_draws_have_the_error_of_the_fit() -> None:
    numbers = random.Random(1)
    (alpha,) = uncertain_alphas([Matrix(0, 3.0, 100)])
    assert alpha.sigma == pytest.approx(0.2)  # (3 - 1) / sqrt(100)
    values = [alpha.draw(numbers) for _ in range(20_000)]
    assert statistics.fmean(values) == pytest.approx(3.0, abs=0.01)
    assert statistics.stdev(values) == pytest.approx(0.2, rel=0.03)


def test_draws_are_truncated_at_one() -> None:
    numbers = random.Random(1)
    values = [UncertainAlpha(Slot(0), 1.5, 0.5).draw(numbers) for _ in range(5000)]
    assert min(values) > 1
    assert statistics.fmean(values) > 1.5 + 0.1  # truncated, not cut: what would lie below is drawn again
    assert UncertainAlpha(Slot(0), 0.2, 1e-12).draw(numbers) > 1


def test_the_stability_band_is_drawn_uniformly() -> None:
    numbers = random.Random(1)
    (alpha,) = uncertain_alphas([Matrix(0, 3.0, 10**16, stability_band=(2.0, 4.0))])
    values = sorted(alpha.draw(numbers) for _ in range(20_000))
    assert (values[0], values[-1]) == pytest.approx((2.0, 4.0), abs=0.01)
    assert values[5000] == pytest.approx(2.5, abs=0.03)


def test_against_a_naive_loop() -> None:
    """The same random numbers, alphas and quantiles, written out."""
    source = analysis(ALPHAS, 60)
    schedule = allocate(source, 40, confidence=True, draws=200)
    numbers, drawn = random.Random(0), []
    for _ in range(200):
        row = []
        for alpha in ALPHAS:
            value = 0.0
            while value <= 1:
                value = alpha + (alpha - 1) / math.sqrt(60) * numbers.gauss(0.0, 1.0)
            row.append(value)
        drawn.append(allocate(row, 40).num_experts)
    assert schedule.confidence is not None
    assert schedule.confidence.changed == sum(counts != schedule.num_experts for counts in drawn) / 200
    for i, spread in enumerate(schedule.confidence.ranges):
        ordered = sorted(counts[i] for counts in drawn)
        assert (spread.low, spread.high) == (ordered[9], ordered[190])  # floor and ceil of 0.05 and 0.95 times 199


def test_layers_are_means_of_their_matrices() -> None:
    """With many equal matrices a layer's mean is surer than each of them."""
    one = Analysis((2.0, 3.0), (Matrix(0, 2.0, 30), Matrix(1, 3.0, 30)))
    many = Analysis(
        (2.0, 3.0), tuple(Matrix(i, a, 30, role=f"r{k}") for i, a in ((0, 2.0), (1, 3.0)) for k in range(25))
    )
    widths = []
    for source in (one, many):
        confidence = allocate(source, 40, confidence=True).confidence
        assert confidence is not None
        widths.append(sum(r.high - r.low for r in confidence.ranges))
    assert widths[1] < widths[0] / 3


def test_modules_have_their_own_ranges() -> None:
    source = Analysis((2.5,), (Matrix(0, 2.0, 50, role="q"), Matrix(0, 3.0, 50, role="v")))
    confidence = allocate(source, 20, level="module", confidence=True).confidence
    assert confidence is not None
    assert [r.role for r in confidence.ranges] == ["q", "v"]


def test_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_confidence import ALPHAS, analysis\n"
        "from alphalloc.allocation import allocate\n"
        "print(allocate(analysis(ALPHAS, 60), 40, confidence=True).id)"
    )
    ids = set()
    for seed in ("0", "7"):
        done = subprocess.run(
            [sys.executable, "-c", code, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        ids.add(done.stdout.strip())
    assert ids == {allocate(analysis(ALPHAS, 60), 40, confidence=True).id}


def test_what_has_no_error() -> None:
    with pytest.raises(InvalidParameterError, match="needs an analysis with matrices and their errors"):
        allocate(ALPHAS, 40, confidence=True)
    with pytest.raises(InvalidParameterError, match="needs an analysis with matrices"):
        allocate(Analysis((2.0,), (Matrix(0, None, 0),)), 5, confidence=True)
    for bad in (0, -1, True, 1.5, 10**7):
        with pytest.raises(InvalidParameterError, match="draws must be a whole number from 1 to 1000000"):
            allocate(analysis(ALPHAS, 60), 40, confidence=True, draws=bad)
