"""FARMS: a spectrum from sub-matrices of one shape, free of the bias of the aspect ratio (arXiv 2506.06280).

Matrices of different aspect ratio have different spectra even when they are noise. FARMS cuts windows of one fixed
ratio out of each, pools the eigenvalues of all windows and leaves one fit to be made. It is another measure, not an
approximation of the whole spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphalloc.errors import MatrixShapeError, NonFiniteWeightError, SpectrumCheckError
from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE, eigenvalues
from alphalloc.spectra.esd import CHECK_TOLERANCE, EPS, ESD
from alphalloc.spectra.gram import float64_array, non_finite_message, shape_of

Float64Array = NDArray[np.float64]

BATCH_BYTES = 32 * 2**20  # of float64 Grams computed together; chosen here: small beside one window at the defaults


@dataclass(frozen=True)
class FarmsSettings:
    """``rows``: rows r of a window at most; ``ratio``: Q, its columns over its rows; ``windows``: at most per axis.

    Defaults: those of the released language-model experiments (2000 rows, ratio 1, 15 x 15 windows).
    """

    rows: int = 2000
    ratio: float = 1.0
    windows: int = 15

    def __post_init__(self) -> None:
        if self.rows < 1 or self.windows < 1 or not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(f"expected at least one row and one window and a positive ratio, found {self}")

    def as_dict(self) -> dict[str, float]:
        """Return the settings by name."""
        return asdict(self)


@dataclass(frozen=True)
class FarmsCost:
    """What FARMS does to one matrix: ``windows`` of ``rows`` x ``cols``, ``eigenvalues`` pooled, ``flops`` in all."""

    windows: int
    rows: int
    cols: int
    eigenvalues: int
    flops: float


def farms_cost(shape: tuple[int, int], settings: FarmsSettings | None = None) -> FarmsCost:
    """Return what ``farms_esd`` will do to a matrix of this shape (rows, cols), from the shape alone.

    flops: 2·side²·length a Gram + (4/3)·side³ a reduction to tridiagonal form, side and length those of a window.
    """
    chosen = settings or FarmsSettings()
    r, c = _window(shape, chosen)
    count = math.prod(len(_starts(dim, size, chosen.windows)) for dim, size in zip(shape, (r, c), strict=True))
    side, length = float(min(r, c)), float(max(r, c))
    return FarmsCost(count, r, c, count * min(r, c), count * (2 * side**2 * length + 4 / 3 * side**3))


def farms_bytes(shape: tuple[int, int], settings: FarmsSettings | None = None) -> int:
    """Return the most memory that ``farms_esd`` takes beside a matrix of this shape: windows in float64 of one batch,
    their Gram matrices and the solver's copy, all windows' eigenvalues and their sorted copy."""
    cost = farms_cost(shape, settings)
    side, length = sorted((cost.rows, cost.cols))
    batch = min(cost.windows, max(1, BATCH_BYTES // (8 * side * length)))
    return max(BATCH_BYTES, 8 * batch * side * (length + 3 * side)) + 2 * 8 * cost.eigenvalues


def farms_esd(weight: Any, *, rows: int = 2000, ratio: float = 1.0, windows: int = 15) -> ESD:
    """Return the pooled eigenvalues of all windows of ``weight`` (2-D, numpy or torch) as one ESD.

    With W as m x n (out x in), Q the ratio and ``ops`` the windows per axis: r = max(1, min(rows, m, ⌊n/Q⌋)),
    c = max(1, ⌊r·Q⌋); per axis step = max(1, ⌊(dim - size)/max(1, ops - 1)⌋), min(ops, ⌊(dim - size)/step⌋ + 1)
    windows, starting at i·step. In every window eigenvalues <= min(r, c)·2.2e-16·λmax (its own) are dropped; the rest
    of all windows are pooled and sorted. W and Wᵀ give the same for Q = 1 only; r >= both sides is the plain ESD for a
    square W only.

    ``num_zero`` counts what was dropped in all windows; ``frobenius_norm`` is that of W; ``rows`` and ``cols`` too.
    The trace and Frobenius identities are checked on every window. Raises MatrixShapeError, NonFiniteWeightError,
    SpectrumCheckError, and ValueError for settings out of range.
    """
    settings = FarmsSettings(rows, ratio, windows)
    m, n = shape_of(weight)
    squared_norm = _squared_norm(weight)
    r, c = _window((m, n), settings)
    kept: list[Float64Array] = []
    for products in _grams(weight, r, c, settings.windows):
        found = _batched_eigenvalues(products)
        _check(found, products)
        bound = found.shape[1] * EPS * np.maximum(found[:, -1:], 0.0)
        kept.append(found[found > bound])
    pooled = np.sort(np.concatenate(kept))
    pooled.flags.writeable = False
    return ESD(pooled, m, n, farms_cost((m, n), settings).eigenvalues - len(pooled), math.sqrt(squared_norm))


def _window(shape: tuple[int, int], settings: FarmsSettings) -> tuple[int, int]:
    m, n = shape
    if m < 1 or n < 1:
        raise MatrixShapeError(f"expected a non-empty matrix, found shape {shape}")
    r = max(1, min(settings.rows, m, math.floor(n / settings.ratio)))
    return r, min(n, max(1, math.floor(r * settings.ratio)))  # a matrix narrower than Q is its own window


def _starts(dim: int, size: int, ops: int) -> list[int]:
    step = max(1, (dim - size) // max(1, ops - 1))
    return [i * step for i in range(min(ops, (dim - size) // step + 1))]


def _squared_norm(weight: Any) -> float:
    """Return ‖W‖_F², summed in slabs of rows. Raises NonFiniteWeightError."""
    total, height = 0.0, max(1, BATCH_BYTES // (8 * int(weight.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, int(weight.shape[0]), height):
            slab = float64_array(weight[start : start + height])
            total += float(np.vdot(slab, slab))
            if not math.isfinite(total):
                raise NonFiniteWeightError(non_finite_message(slab))
    return total


def _grams(weight: Any, r: int, c: int, ops: int) -> Iterator[Float64Array]:
    """Yield batches (k x side x side) of the windows' Gram matrices; only a batch of windows is float64 at a time."""
    side = min(r, c)
    batch = max(1, BATCH_BYTES // (8 * side * max(r, c)))
    m, n = shape_of(weight)
    places = [(i, j) for i in _starts(m, r, ops) for j in _starts(n, c, ops)]
    for first in range(0, len(places), batch):
        stack = np.stack([float64_array(weight[i : i + r, j : j + c]) for i, j in places[first : first + batch]])
        oriented = stack if r <= c else stack.transpose(0, 2, 1)
        yield oriented @ oriented.transpose(0, 2, 1)


def _batched_eigenvalues(products: Float64Array) -> Float64Array:
    if products.shape[1] > NUMPY_MAX_SIDE:
        return np.stack([eigenvalues(product) for product in products])
    try:
        return np.asarray(np.linalg.eigvalsh(products, UPLO="L"), dtype=np.float64)
    except np.linalg.LinAlgError as exc:
        raise SpectrumCheckError(f"the eigensolver did not converge on a window: {exc}") from exc


def _check(found: Float64Array, products: Float64Array) -> None:
    traces = np.trace(products, axis1=1, axis2=2)
    squares = np.einsum("kij,kij->k", products, products)
    for name, sums, expected in (("trace", found.sum(axis=1), traces), ("Frobenius", (found**2).sum(axis=1), squares)):
        broken = ~(np.abs(sums - expected) <= CHECK_TOLERANCE * np.abs(expected))
        if broken.any():
            raise SpectrumCheckError(
                f"the {name} identity is broken in {int(broken.sum())} of {len(products)} windows; "
                "the eigensolver is at fault, not the weights"
            )
