"""CUDA against the CPU, the same code on both: real models, hostile matrices, memory that runs out, TF32.

Skipped where torch sees no CUDA device; what runs without one is in ``tests/backends``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_agreement import Held, assert_same_spectrum, padded, same_fit

from alphalloc.backends.batched import run_batched, run_lanes
from alphalloc.backends.lane import How
from alphalloc.checkpoint import open_checkpoint
from alphalloc.fits import FITS
from alphalloc.fits.batched import fit_batch
from alphalloc.spectra.batched import SOLVER_THREADS, symmetric_eigenvalues

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="NO CUDA DEVICE: nothing that this file checks was checked on a card"
    ),
]
NAME = "xmin_peak_robust"


def compare(matrices, estimators=(NAME,)):
    """Both devices on the same matrices; the names of those whose xmin differs at equal distance."""
    cpu = dict(run_batched(matrices, estimator=NAME, device="cpu"))
    cuda = dict(run_batched(matrices, estimator=NAME, device="cuda"))
    excepted = []
    for position, matrix in enumerate(matrices):
        ours, reference = cuda[position], cpu[position]
        assert ours.notes == ()
        if reference.spectrum is None or not len(reference.spectrum.eigs):
            assert (ours.fit.status, ours.fit.reason) == (reference.fit.status, reference.fit.reason)
            continue
        assert_same_spectrum(ours.spectrum, reference.spectrum, matrix.name)
        values, zeros = torch.from_numpy(padded(ours.spectrum))[None].cuda(), torch.tensor([ours.spectrum.num_zero])
        for estimator in estimators:
            (fit,) = fit_batch(estimator, values, zeros.cuda())
            if same_fit(fit, FITS[estimator](reference.spectrum.eigs), (matrix.name, estimator)):
                excepted.append((matrix.name, estimator))
    print(f"another xmin of the same distance: {excepted or 'no matrix'}")
    return excepted


@pytest.mark.parametrize("which", ["minilm", "smollm2"])
def test_a_real_model_whole(which, minilm_file, smollm2_file):
    matrices = open_checkpoint(minilm_file if which == "minilm" else smollm2_file).matrices
    assert len(compare(matrices, tuple(FITS))) <= 2


def test_large_matrices_of_every_dtype():
    rng = np.random.default_rng(0)
    shapes = [(1024, 2816), (2816, 1024), (2048, 2048)]
    compare([Held(f"{s}{d}", (rng.standard_normal(s) * 0.02).astype(d)) for s in shapes for d in ("f2", "f4", "f8")])


def test_hostile_matrices():
    rng = np.random.default_rng(1)
    bad = rng.standard_normal((24, 40))
    nan, inf = bad.copy(), bad.copy()
    nan[3, 4], inf[0, 0] = np.nan, np.inf
    weights = [nan, inf, np.full((24, 40), 1e200), np.zeros((24, 40)), np.eye(24), np.ones((24, 40)), bad, bad.T.copy()]
    compare([Held(str(i), weight) for i, weight in enumerate(weights)])


def test_tf32_reaches_no_result():
    matrices = [Held(str(i), np.random.default_rng(i).standard_normal((300, 500)).astype("f4")) for i in range(4)]
    before = torch.backends.cuda.matmul.allow_tf32
    found = []
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            found.append(dict(run_batched(matrices, estimator=NAME, device="cuda")))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for position in range(4):
        assert np.array_equal(found[0][position].spectrum.eigs, found[1][position].spectrum.eigs)


@pytest.mark.parametrize("solver", ["batched", "threads"])
def test_both_solvers(solver):
    weights = torch.randn(6, 400, 600, dtype=torch.float64, device="cuda")
    grams = weights @ weights.mT
    found = symmetric_eigenvalues(grams, solver=solver, threads=SOLVER_THREADS).cpu()
    expected = torch.linalg.eigvalsh(grams.cpu())
    assert ((found - expected).abs() <= 400 * 2.2e-16 * expected[:, -1:]).all()


def test_real_out_of_memory_halves_the_batch_and_goes_on():
    matrices = [Held(str(i), np.random.default_rng(i).standard_normal((1024, 1024)).astype("f4")) for i in range(24)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 160 * 2**20) / total)
    try:
        sizes: list[int] = []  # of the batches that were tried
        found = dict(run_lanes(matrices, How(NAME), [torch.device("cuda", 0)], [2**40], allocate=sizes.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sizes[0] > 160 * 2**20
    assert min(sizes) <= sizes[0] // 2  # memory did run out
    assert sorted(found) == list(range(24))
    expected = dict(run_batched(matrices[:2], estimator=NAME, device="cpu"))
    for position in range(2):
        assert_same_spectrum(found[position].spectrum, expected[position].spectrum, str(position))


def test_fast_precision(minilm_file):
    matrices = open_checkpoint(minilm_file).matrices
    full = dict(run_batched(matrices, estimator=NAME, device="cpu"))
    fast = dict(run_batched(matrices, estimator=NAME, device="cuda", precision="fast"))
    for position, matrix in enumerate(matrices):
        assert fast[position].fit.alpha == pytest.approx(full[position].fit.alpha, rel=1e-4), matrix.name
