"""The histogram that a report draws: every eigenvalue counted once, in its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alphalloc.spectra import ESD, esd, log_histogram


def spectrum(values: list[float]) -> ESD:
    return ESD(np.sort(np.asarray(values, dtype=np.float64)), len(values), len(values), 0, math.sqrt(sum(values)))


def test_exact_case():
    found = log_histogram(spectrum([1.0, 10.0, 100.0, 1000.0, 10000.0]), bins=4)
    assert (found.log10_low, found.log10_high) == (0.0, 4.0)
    assert found.counts == (1, 1, 1, 2)  # the largest belongs to the last bin


def test_a_spectrum_of_one_value_has_a_range():
    found = log_histogram(spectrum([5.0, 5.0, 5.0]))
    assert found.log10_low < math.log10(5.0) < found.log10_high
    assert sum(found.counts) == 3


def test_no_eigenvalues_no_histogram():
    assert log_histogram(esd(np.zeros((3, 4)))) is None


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="at least one bin, found 0"):
        log_histogram(spectrum([1.0, 2.0]), bins=0)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(1e-8, 1e8)), st.integers(1, 64))
def test_it_is_numpys_histogram_of_the_logarithms(values, bins):
    held = spectrum(list(values))
    found = log_histogram(held, bins)
    assert sum(found.counts) == len(values)
    logs = np.log10(held.eigs)
    if logs[-1] - logs[0] >= 0.02:
        expected, edges = np.histogram(logs, bins=bins)
        assert (found.log10_low, found.log10_high) == (edges[0], edges[-1])
        # A value on an edge may fall to either side by its last bit.
        assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= sum(
            np.isclose(logs[:, None], edges[None, 1:-1], rtol=0, atol=1e-9).any(axis=1)
        )
