"""The in-place syrk: against numpy's product, in every memory order, with and without SciPy's interface."""

from __future__ import annotations

import sys
import threading
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from alphalloc.spectra import esd
from alphalloc.spectra.blas import _is_known, _syrk, add_product, triangle_squared_norm

BLAS = sys.modules[add_product.__module__]


def test_a_product_by_hand():
    total = np.asfortranarray([[1.0, 7.0], [0.0, 1.0]])
    add_product(total, np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert total.tolist() == [[6.0, 7.0], [11.0, 26.0]]  # the 7 above the diagonal is not touched


def test_the_norm_of_a_triangle_by_hand():
    assert triangle_squared_norm(np.array([[1.0, np.nan], [2.0, 3.0]])) == 1 + 2 * 4 + 9


@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 200))
def test_the_norm_of_a_triangle_is_that_of_the_whole(seed, side):
    half = np.random.default_rng(seed).standard_normal((side, side))
    whole = np.tril(half) + np.tril(half, -1).T
    assert triangle_squared_norm(np.asfortranarray(half)) == pytest.approx(float((whole**2).sum()), rel=1e-13)


@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 30), length=st.integers(1, 50), order=st.sampled_from("CFS"))
def test_it_is_numpys_product_in_every_memory_order(seed, side, length, order):
    rng = np.random.default_rng(seed)
    slab = rng.standard_normal((side, length))
    start = np.asfortranarray(rng.standard_normal((side, side)))
    given_slab = np.repeat(slab, 2, axis=1)[:, ::2] if order == "S" else np.array(slab, order=order)
    total = start.copy(order="F")
    add_product(total, given_slab)
    assert np.allclose(np.tril(total), np.tril(start + slab @ slab.T), rtol=1e-13, atol=1e-12)
    assert np.array_equal(np.triu(total, 1), np.triu(start, 1))


def test_scipy_offers_the_interface_here():
    assert _syrk() is not None


def test_without_scipys_interface_numpy_gives_the_same_spectrum(monkeypatch):
    weight = np.random.default_rng(0).standard_normal((40, 90))
    fast = esd(weight)
    monkeypatch.setattr(BLAS, "_syrk", lambda: None)
    assert np.allclose(esd(weight).eigs, fast.eigs, rtol=1e-12)
    assert np.allclose(esd(weight.T).eigs, fast.eigs, rtol=1e-12)


@pytest.mark.parametrize(
    ("signature", "known"),
    [
        ("void (char *, char *, int *, int *, x_d *, x_d *, int *, x_d *, x_d *, int *)", True),
        ("void (char *, char *, int *, int *, double *, double *, int *, double *, double *, int *)", True),
        ("void (char *, char *, long *, long *, x_d *, x_d *, long *, x_d *, x_d *, long *)", False),
        ("void (char *, char *, int *, int *, x_s *, x_s *, int *, x_s *, x_s *, int *)", False),
        ("int (char *, char *, int *, int *, x_d *, x_d *, int *, x_d *, x_d *, int *)", False),
        ("", False),
    ],
)
def test_another_argument_list_is_not_called(signature, known):
    assert _is_known(signature) is known


def test_other_threads_run_meanwhile():
    """The interpreter lock is free during the call: this thread notes the time in the middle of it."""
    slab, total = np.ones((1200, 2400)), np.zeros((1200, 1200), order="F")
    span: list[float] = []

    def multiply() -> None:
        span.append(time.perf_counter())
        add_product(total, slab)
        span.append(time.perf_counter())

    worker = threading.Thread(target=multiply)
    worker.start()
    ticks = []
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    begin, end = span
    assert any(begin + 0.2 * (end - begin) < tick < end - 0.2 * (end - begin) for tick in ticks)
