"""The empirical spectral density (ESD) of one weight matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphalloc.errors import SpectrumCheckError
from alphalloc.spectra.blas import triangle_squared_norm
from alphalloc.spectra.eigenvalues import eigenvalues
from alphalloc.spectra.gram import Gram, gram

EPS = 2.2e-16  # float64 rounding: below nmin·EPS·λmax an eigenvalue is noise of the arithmetic
CHECK_TOLERANCE = 1e-10  # relative, on both identities; measured deviations stay below 1e-13


@dataclass(frozen=True)
class ESD:
    """Spectrum of a rows x cols matrix.

    ``eigs``: the eigenvalues of W Wᵀ above nmin·2.2e-16·λmax, ascending, float64, read-only, natural units (no 1/N).
    ``num_zero``: how many of the nmin eigenvalues lie at or below that bound. ``frobenius_norm``: ‖W‖_F.
    """

    eigs: NDArray[np.float64] = field(repr=False)
    rows: int
    cols: int
    num_zero: int
    frobenius_norm: float


def esd(weight: Any) -> ESD:
    """Return the ESD of ``weight`` (2-D numpy array of any float type, or torch tensor): eigenvalues of W Wᵀ.

    Computed as float64 Gram + float64 eigenvalues; each eigenvalue is within max(nmin, 8)·2.2e-16·λmax of the squared
    singular value. Two identities are checked on every matrix before anything is dropped: Σλ = ‖W‖_F² and Σλ² = ‖G‖_F².

    A weight that shows two factors ``left`` and ``right`` instead of numbers goes through those (``low_rank_esd``).

    Raises MatrixShapeError, NonFiniteWeightError, or SpectrumCheckError when an identity is off by more than 1e-10.
    """
    if hasattr(weight, "left") and hasattr(weight, "right"):
        from alphalloc.spectra.low_rank import low_rank_esd  # it needs this module

        return low_rank_esd(weight.left, weight.right)
    product = gram(weight)
    values = eigenvalues(product.matrix)
    _check_identities(values, product)
    return spectrum_of(values, product.rows, product.cols, product.squared_norm)


def spectrum_of(values: NDArray[np.float64], rows: int, cols: int, squared_norm: float) -> ESD:
    """Return the ESD with these ascending eigenvalues after dropping the numerically zero ones."""
    bound = len(values) * EPS * max(float(values[-1]), 0.0)
    kept = values[values > bound].copy()
    kept.flags.writeable = False
    return ESD(kept, rows, cols, len(values) - len(kept), float(np.sqrt(squared_norm)))


IDENTITIES = {"trace": "the trace identity Σλ = ‖W‖²", "frobenius": "the Frobenius identity Σλ² = ‖G‖²"}


def broken_identity(name: str, found: float, expected: float) -> str:
    """Return the message for an identity (a key of ``IDENTITIES``) that does not hold."""
    return f"{IDENTITIES[name]} is broken: {found!r} against {expected!r}; the eigensolver is at fault, not the weights"


def _check_identities(values: NDArray[np.float64], product: Gram) -> None:
    pairs = (
        ("trace", float(values.sum()), product.squared_norm),
        ("frobenius", float(values @ values), triangle_squared_norm(product.matrix)),
    )
    for name, found, expected in pairs:
        if not abs(found - expected) <= CHECK_TOLERANCE * abs(expected):
            raise SpectrumCheckError(broken_identity(name, found, expected))
