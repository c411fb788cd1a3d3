"""The spectrum of a product of two thin factors, without the product."""

from __future__ import annotations

from typing import Any

import numpy as np

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError, SpectrumCheckError
from alphalloc.spectra.esd import CHECK_TOLERANCE, ESD, spectrum_of
from alphalloc.spectra.gram import Float64Array, float64_array


def low_rank_esd(left: Any, right: Any) -> ESD:
    """Return the ESD of W = ``left`` · ``right`` (rows x r times r x cols): eigenvalues of W Wᵀ.

    With left = Q₁R₁ and rightᵀ = Q₂R₂, W has the singular values of the r x r matrix R₁R₂ᵀ; the other nmin - r
    eigenvalues are zero and counted as such. (rows + cols)·r² flop, and the accuracy of a dense float64 SVD: nothing
    is squared before the singular values are known. Σλ and Σλ² are checked against traces of the r x r Gram matrices.

    Raises MatrixShapeError, NonFiniteWeightError, or SpectrumCheckError when an identity is broken.
    """
    first, second = float64_array(left), float64_array(right)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[0] or 0 in first.shape + second.shape:
        raise MatrixShapeError(f"expected factors of rows x r and r x cols, found {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise NonFiniteWeightError("expected finite weights, found NaN or infinite values in a factor")
    core = _triangle(first) @ _triangle(second.T).T
    found = np.sort(np.linalg.svd(core, compute_uv=False) ** 2)
    rows, cols = first.shape[0], second.shape[1]
    values = np.concatenate([np.zeros(min(rows, cols) - len(found)), found])
    squared_norm = _checked(values, first.T @ first, second @ second.T)
    return spectrum_of(values, rows, cols, squared_norm)


def _triangle(matrix: Float64Array) -> Float64Array:
    """R of the QR decomposition."""
    return np.asarray(np.linalg.qr(matrix, mode="r"), dtype=np.float64)


def _checked(values: Float64Array, inner: Float64Array, outer: Float64Array) -> float:
    """Return ‖W‖_F² = tr(LᵀL · RRᵀ) after comparing Σλ with it and Σλ² with tr((LᵀL · RRᵀ)²)."""
    product = inner @ outer
    largest = float(np.trace(inner)) * float(np.trace(outer))  # what the traces are rounded against
    pairs = (
        ("Σλ = ‖W‖²", float(values.sum()), float(np.trace(product)), largest),
        ("Σλ² = ‖G‖²", float(values @ values), float(np.sum(product * product.T)), largest**2),
    )
    for name, total, expected, scale in pairs:
        if not abs(total - expected) <= CHECK_TOLERANCE * abs(expected) + 1e-13 * scale:
            raise SpectrumCheckError(f"the identity {name} of a low-rank product is broken: {total!r}, {expected!r}")
    return max(pairs[0][2], 0.0)
