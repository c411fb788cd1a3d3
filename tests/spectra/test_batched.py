"""Spectra of batches: an exact case, the law against an fp64 SVD, both solvers, the checks, halving."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc.errors import SpectrumCheckError
from alphalloc.spectra import esd
from alphalloc.spectra.batched import (
    BrokenSpectrumError,
    LinAlgError,
    add_gram,
    batch_spectra,
    halving,
    has_batched_solver,
    is_out_of_memory,
    lower_squared_norm,
    symmetric_eigenvalues,
)
from alphalloc.spectra.esd import EPS


def grams_of(weights, **options):
    side = min(weights[0].shape)
    grams = torch.zeros(len(weights), side, side, dtype=torch.float64)
    norms = torch.stack([add_gram(grams[i], weight, **options) for i, weight in enumerate(weights)])
    return grams, norms


def drawn(seed, side, length, count, decades):
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -decades, side)[:, None]
    weights = [rng.standard_normal((side, length)) * scales for _ in range(count)]
    return [torch.from_numpy(np.ascontiguousarray(w.T) if i % 2 else w) for i, w in enumerate(weights)]


def test_diagonals_by_hand():
    weights = [torch.diag(torch.tensor([3.0, 1.0, 2.0])), torch.zeros(3, 5, dtype=torch.float16)]
    found = batch_spectra(*grams_of(weights), symmetric_eigenvalues)
    assert found.values[0].tolist() == pytest.approx([1.0, 4.0, 9.0], abs=1e-14)
    assert found.num_zero.tolist() == [0, 3]
    assert found.squared_norms.tolist() == [14.0, 0.0]
    assert found.finite.tolist() == [True, True]


@settings(max_examples=EXAMPLES // 4)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.integers(1, 30),
    extra=st.integers(0, 20),
    count=st.integers(1, 4),
    decades=st.floats(0, 8),
    solver=st.sampled_from(["batched", "threads"]),
)
def test_eigenvalues_lie_within_the_promised_bound_of_an_svd(seed, side, extra, count, decades, solver):
    weights = drawn(seed, side, side + extra, count, decades)
    found = batch_spectra(*grams_of(weights), partial(symmetric_eigenvalues, solver=solver, threads=2))
    for row, weight in enumerate(weights):
        expected = np.sort(np.linalg.svd(weight.numpy(), compute_uv=False) ** 2)
        bound = max(side, 8) * EPS * expected[-1]
        assert np.abs(found.values[row].numpy() - expected).max() <= bound
        assert float(found.squared_norms[row]) == pytest.approx(expected.sum(), rel=1e-12)
        assert int(found.num_zero[row]) == int((found.values[row] <= side * EPS * found.values[row, -1]).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_every_dtype_and_orientation_gives_what_numpy_gives(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = esd(weight)
    found = batch_spectra(*grams_of([weight], slab_bytes=8 * 40 * 7), symmetric_eigenvalues)  # slabs of seven columns
    assert found.values[0].numpy() == pytest.approx(expected.eigs, rel=1e-12)


def test_bands_of_rows_leave_out_only_what_lies_above_the_diagonal():
    weight = torch.randn(1030, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gram = torch.zeros(1, 1030, 1030, dtype=torch.float64)
    side = torch.cat([weight, torch.zeros(1030, 1000, dtype=torch.float64)], dim=1)
    add_gram(gram[0], side)
    whole = weight @ weight.T
    assert torch.allclose(gram[0].tril(), whole.tril(), rtol=0, atol=1e-12)
    assert gram[0, 0, -1] == 0  # nobody reads it
    assert float(lower_squared_norm(gram)[0]) == pytest.approx(float((whole * whole).sum()), rel=1e-13)


def test_what_is_not_finite_is_marked_and_harms_nobody():
    weights = [torch.randn(12, 20, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    weights[1][3, 4], weights[2][0, 0] = torch.nan, torch.inf
    found = batch_spectra(*grams_of(weights), symmetric_eigenvalues)
    assert found.finite.tolist() == [True, False, False, True]
    for row in (0, 3):
        assert found.values[row].numpy() == pytest.approx(esd(weights[row]).eigs, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "message"), [("trace", "the trace identity"), ("frobenius", "the Frobenius identity")]
)
def test_a_solver_that_errs_is_found_out(kind, message):
    def lying(grams):
        values = torch.linalg.eigvalsh(grams)
        if kind == "trace":
            values[2, 5] *= 1 + 1e-8
        else:
            values[2, 0], values[2, 5] = values[2, 0] + 1e-6, values[2, 5] - 1e-6
        return values

    weights = [torch.randn(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with pytest.raises(SpectrumCheckError, match=f"{message}.*eigensolver is at fault") as caught:
        batch_spectra(*grams_of(weights), lying)
    assert isinstance(caught.value, BrokenSpectrumError)
    assert caught.value.position == 2


def test_the_number_of_solver_threads_changes_no_bit():
    grams, _ = grams_of(drawn(0, 40, 60, 6, 3.0))
    one, three = (symmetric_eigenvalues(grams, solver="threads", threads=n) for n in (1, 3))
    assert torch.equal(one, three)


class Card:
    """A solver that holds so many matrices and no more, as a card's memory does."""

    def __init__(self, room):
        self.room, self.calls = room, []

    def __call__(self, grams):
        self.calls.append(len(grams))
        if len(grams) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.linalg.eigvalsh(grams)


def test_out_of_memory_halves_until_it_fits():
    grams, _ = grams_of(drawn(1, 10, 12, 7, 2.0))
    card = Card(room=2)
    assert torch.equal(halving(grams, card), torch.linalg.eigvalsh(grams))
    assert card.calls == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        halving(grams, Card(room=0))


def test_the_matrix_that_does_not_converge_is_named():
    grams, _ = grams_of(drawn(1, 10, 12, 7, 2.0))
    hard = grams[5, 0, 0]

    def solve(stack):
        if (stack[:, 0, 0] == hard).any():
            raise LinAlgError("linalg.eigh: (Batch element 0): The algorithm failed to converge")
        return torch.linalg.eigvalsh(stack)

    with pytest.raises(BrokenSpectrumError, match="did not converge on a 10-sided matrix") as caught:
        halving(grams, solve)
    assert caught.value.position == 5


def test_which_errors_mean_that_memory_ran_out():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling ..."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_batched_solver_is_a_matter_of_cuda():
    assert not has_batched_solver(torch.device("cpu"))


@pytest.mark.parametrize(
    ("release", "cuda", "batched"),
    [
        ("2.13.0+cu126", "12.6", False),
        ("2.13.0+cu128", "12.8", True),
        ("2.12.1", "13.0", True),
        ("2.11.0", "13.0", False),
    ],
)
def test_the_batched_solver_is_taken_where_it_is_right(monkeypatch, release, cuda, batched):
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert has_batched_solver(torch.device("cuda")) == batched
