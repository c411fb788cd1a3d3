"""What a random matrix of the same shape and size would look like: bulk edge, spikes, and two distances from it.

The spectrum of W Wᵀ for an m x n matrix of independent entries with variance s² fills, for large sides, the
Marchenko-Pastur bulk up to s²·(√nmax + √nmin)². What lies beyond is not noise (Martin and Mahoney, arXiv 1810.01075).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from alphalloc.spectra.esd import ESD

Float64Array = NDArray[np.float64]

TRACY_WIDOM_99 = 2.0234  # 0.99 quantile of the Tracy-Widom law of real matrices
BINS = 32  # of log10 λ in the distance; chosen here: noise of side 300 is then below 0.1


@dataclass(frozen=True)
class Bulk:
    """``variance``: s² of the entries without the spikes; ``edge``: of the bulk, an eigenvalue; ``num_spikes``."""

    variance: float
    edge: float
    num_spikes: int


def marchenko_pastur(spectrum: ESD) -> Bulk:
    """Return the Marchenko-Pastur bulk of the matrix behind ``spectrum``.

    Without spikes s² would be the mean square of the entries, Σλ/(rows·cols). Spikes inflate it, so they are taken out
    until none is left: with k of them, s² = Σ_{the others} λ / ((nmin - k)·nmax), and a spike is
    λ > s²·(mu + 2.0234·sigma), mu = (√(nmax-1) + √nmin)², sigma = √mu·(1/√(nmax-1) + 1/√nmin)^(1/3): the largest
    eigenvalue of pure noise exceeds that once in a hundred matrices (Johnstone 2001, Ann. Statist. 29, 295).
    ``edge`` is s²·(√nmax + √nmin)².
    """
    side, length = sorted((spectrum.rows, spectrum.cols))
    eigs = spectrum.eigs
    if len(eigs) == 0:
        return Bulk(0.0, 0.0, 0)
    outer, inner = math.sqrt(max(length - 1, 1)), math.sqrt(side)
    limit = (outer + inner) ** 2 + TRACY_WIDOM_99 * (outer + inner) * (1 / outer + 1 / inner) ** (1 / 3)
    sums = np.cumsum(eigs)
    spikes = 0
    while True:
        variance = float(sums[len(eigs) - spikes - 1]) / ((side - spikes) * length)
        found = len(eigs) - int(np.searchsorted(eigs, variance * limit, side="right"))
        if found <= spikes or found >= len(eigs):
            return Bulk(variance, variance * (math.sqrt(length) + inner) ** 2, spikes)
        spikes = found


def mp_softrank(spectrum: ESD) -> float | None:
    """Return bulk edge / λmax (Martin and Mahoney, arXiv 1810.01075): near 1 for noise, 0 for a few huge directions."""
    return marchenko_pastur(spectrum).edge / float(spectrum.eigs[-1]) if len(spectrum.eigs) else None


def random_spectrum(rows: int, cols: int, squared_norm: float, *, seed: int = 0) -> Float64Array:
    """Return, ascending, the eigenvalues of G Gᵀ for a rows x cols Gaussian matrix G with ‖G‖_F² = ``squared_norm``.

    Exact in law without the matrix: G Gᵀ is similar to B Bᵀ, B bidiagonal with independent chi entries
    (Dumitriu and Edelman, arXiv math-ph/0206043), so nmin² operations do instead of nmin²·nmax.
    """
    side, length = sorted((rows, cols))
    rng = np.random.default_rng(seed)
    diagonal = np.sqrt(rng.chisquare(np.arange(length, length - side, -1)))
    below = np.sqrt(rng.chisquare(np.arange(side - 1, 0, -1))) if side > 1 else np.empty(0)
    main = diagonal**2
    main[1:] += below**2
    eigs: Float64Array = np.maximum(eigvalsh_tridiagonal(main, diagonal[:-1] * below), 0.0)
    return eigs * (squared_norm / float(eigs.sum()))


def rand_distance(spectrum: ESD, *, seed: int = 0) -> float | None:
    """Return the Jensen-Shannon distance, in [0, 1], between the spectrum and that of noise of equal shape and norm.

    Both densities are histograms of log10 λ with 32 equal bins over the range of the two together (zeros fall into
    the first); distance = √(JS divergence to base 2). This is a distance of densities, as the name in arXiv 1810.01075
    suggests; WeightWatcher's column of that name compares the sorted eigenvalue vectors and is another number.
    """
    if len(spectrum.eigs) == 0:
        return None
    noise = random_spectrum(spectrum.rows, spectrum.cols, float(spectrum.eigs.sum()), seed=seed)
    tiny = float(np.finfo(np.float64).tiny)
    noise = noise[noise > float(noise[-1]) * len(noise) * np.finfo(np.float64).eps]
    low = math.log10(max(min(float(spectrum.eigs[0]), float(noise[0])), tiny))
    high = math.log10(max(float(spectrum.eigs[-1]), float(noise[-1])))
    first, second = (
        _histogram(values, low, high, spectrum.num_zero if values is spectrum.eigs else 0)
        for values in (spectrum.eigs, noise)
    )
    middle = 0.5 * (first + second)
    divergence = 0.5 * (_relative_entropy(first, middle) + _relative_entropy(second, middle))
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def _histogram(values: Float64Array, low: float, high: float, num_zero: int) -> Float64Array:
    width = max(high - low, 1e-12) / BINS
    bins = np.clip(((np.log10(values) - low) / width).astype(np.intp), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    counts[0] += num_zero
    shares: Float64Array = counts / counts.sum()
    return shares


def _relative_entropy(first: Float64Array, second: Float64Array) -> float:
    held = first > 0
    return float((first[held] * np.log2(first[held] / second[held])).sum())
