"""When results of two devices count as equal, and the one exception, which is listed."""

from __future__ import annotations

import numpy as np


class Held:
    """A matrix in memory with the face that backends read."""

    def __init__(self, name, weight):
        self.name, self.weight, self.shape = name, weight, tuple(int(side) for side in weight.shape)

    def load(self):
        return self.weight


def padded(spectrum):
    """All nmin eigenvalues, the dropped ones as zeros."""
    return np.concatenate([np.zeros(spectrum.num_zero), spectrum.eigs])


def assert_same_spectrum(ours, reference, name):
    """|Δλ| <= max(1e-12, nmin·2.2e-16)·λmax."""
    bound = max(1e-12, min(reference.rows, reference.cols) * 2.2e-16) * reference.eigs[-1]
    assert np.abs(padded(ours) - padded(reference)).max() <= bound, name
    assert ours.frobenius_norm == np.float64(reference.frobenius_norm) or (
        abs(ours.frobenius_norm / reference.frobenius_norm - 1) <= 1e-12
    ), name


def same_fit(ours, reference, name):
    """Assert alpha, xmin and D to 1e-9 (relative). Return whether this was the exception.

    The exception: xmin differs, and both candidates' D agree to 1e-12.
    """
    assert (ours.status, ours.reason) == (reference.status, reference.reason), name
    if reference.alpha is None:
        return False
    if not np.isclose(ours.xmin, reference.xmin, rtol=1e-9, atol=0):
        assert abs(ours.ks_distance - reference.ks_distance) <= 1e-12, (name, ours, reference)
        return True
    assert ours.num_tail == reference.num_tail, name
    for field in ("alpha", "ks_distance", "sigma"):
        assert np.isclose(getattr(ours, field), getattr(reference, field), rtol=1e-9, atol=1e-15), (name, field)
    assert (ours.peak is None) == (reference.peak is None), name
    return False
