"""The float64 Gram matrix of a weight matrix, accumulated slab by slab so that W is never copied whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError
from alphalloc.spectra.blas import add_product

Float64Array = NDArray[np.float64]

# Chosen here: at 4096 rows a slab is 1024 columns wide, enough for BLAS to run at full speed, small beside the Gram.
SLAB_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Gram:
    """G = W Wᵀ with W oriented to nmin x nmax; ``squared_norm`` is ‖W‖_F² summed from W itself, not from G.

    ``matrix`` is in Fortran order and holds G in its lower triangle; what stands above the diagonal means nothing.
    """

    matrix: Float64Array
    squared_norm: float
    rows: int
    cols: int


def gram(weight: Any) -> Gram:
    """Return the float64 Gram matrix of ``weight`` on its smaller side.

    ``weight`` is a rows x cols numpy array (any float type, bfloat16 of ml_dtypes included) or torch tensor. Each slab
    is upcast to float64 and its product with its own transpose added to one triangle (BLAS syrk). float64 throughout,
    because 100 histogram bins between the smallest and the largest eigenvalue see what float32 rounds away.

    Raises MatrixShapeError unless 2-D and non-empty, NonFiniteWeightError for NaN, infinity or squares beyond float64.
    """
    rows, cols = shape_of(weight)
    side = min(rows, cols)
    matrix = np.zeros((side, side), order="F")
    squared_norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for slab in _slabs(weight, rows, cols):
            squared_norm += float(np.vdot(slab, slab))
            if not np.isfinite(squared_norm):
                raise NonFiniteWeightError(non_finite_message(slab))
            add_product(matrix, slab)
    return Gram(matrix, squared_norm, rows, cols)


def shape_of(weight: Any) -> tuple[int, int]:
    """Return (rows, cols) of an array or tensor. Raises MatrixShapeError unless 2-D and non-empty."""
    shape = tuple(int(side) for side in weight.shape)
    if len(shape) != 2 or 0 in shape:
        raise MatrixShapeError(f"expected a non-empty matrix (two dimensions), found shape {shape}")
    return shape[0], shape[1]


def _slabs(weight: Any, rows: int, cols: int) -> Iterator[Float64Array]:
    """Yield nmin x k float64 slabs that together are W (or Wᵀ, when W is tall)."""
    side, length = min(rows, cols), max(rows, cols)
    width = max(1, SLAB_BYTES // (8 * side))
    for start in range(0, length, width):
        stop = min(start + width, length)
        yield float64_array(weight[:, start:stop]) if rows <= cols else float64_array(weight[start:stop]).T


def float64_array(part: Any) -> Float64Array:
    """Return an array or torch tensor of any float type as a float64 array."""
    if type(part).__module__.partition(".")[0] == "torch":  # no torch import: bfloat16 tensors have no numpy form
        part = part.detach().to("cpu", dtype=_torch_float64()).numpy()
    return np.asarray(part, dtype=np.float64)


def _torch_float64() -> Any:
    import torch

    return torch.float64


def non_finite_message(slab: Float64Array) -> str:
    """Return what is wrong with a slab whose squares do not sum to a finite number."""
    nan, inf = int(np.isnan(slab).sum()), int(np.isinf(slab).sum())
    if nan or inf:
        return f"expected finite weights, found {nan} NaN and {inf} infinite values; the checkpoint is damaged"
    return "the squares of the weights overflow float64; scale the matrix down"
