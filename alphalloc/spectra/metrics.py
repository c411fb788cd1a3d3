"""What can be read off a spectrum beside the power law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alphalloc.spectra.esd import ESD


@dataclass(frozen=True)
class SpectralMetrics:
    """Scalars of one spectrum; all logarithms to base 10 but the entropy's. None where the value does not exist.

    - ``spectral_norm``: √λmax, the largest singular value (not its square).
    - ``frobenius_norm``: √Σλ.
    - ``stable_rank``: Σλ / λmax.
    - ``log10_spectral_norm``: log10 of ``spectral_norm``.
    - ``alpha_weighted``: alpha · log10 λmax (Martin and Mahoney, arXiv 1901.08278; on the squared norm).
    - ``log_alpha_norm``: log10 Σ λ^alpha.
    - ``entropy``: -Σ p ln p / ln rank with p = λ/Σλ; 1 for a flat spectrum, undefined for rank 1.
    - ``rank``: number of eigenvalues above the numerical zero.
    """

    spectral_norm: float
    frobenius_norm: float
    stable_rank: float | None
    log10_spectral_norm: float | None
    alpha_weighted: float | None
    log_alpha_norm: float | None
    entropy: float | None
    rank: int


def spectral_metrics(spectrum: ESD, alpha: float | None = None) -> SpectralMetrics:
    """Return the metrics of ``spectrum``; those that weigh by the exponent need ``alpha`` and are None without it."""
    eigs = spectrum.eigs
    if len(eigs) == 0:
        return SpectralMetrics(0.0, spectrum.frobenius_norm, None, None, None, None, None, 0)
    largest = float(eigs[-1])
    relative = eigs / largest
    log10_largest = math.log10(largest)
    return SpectralMetrics(
        spectral_norm=math.sqrt(largest),
        frobenius_norm=spectrum.frobenius_norm,
        stable_rank=float(relative.sum()),
        log10_spectral_norm=0.5 * log10_largest,
        alpha_weighted=None if alpha is None else alpha * log10_largest,
        # Relative eigenvalues keep λ^alpha from overflowing.
        log_alpha_norm=None if alpha is None else alpha * log10_largest + math.log10(float((relative**alpha).sum())),
        entropy=_entropy(eigs),
        rank=len(eigs),
    )


def _entropy(eigs: np.ndarray) -> float | None:
    if len(eigs) < 2:
        return None
    shares = eigs / eigs.sum()
    shares = shares[shares > 0]  # a share may underflow
    return float(-(shares * np.log(shares)).sum() / math.log(len(eigs)))
