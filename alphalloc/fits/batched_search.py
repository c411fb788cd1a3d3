"""The exact search for the tail with the smallest KS distance in many spectra at once (torch).

As in ``search``: the deviation at any one position of a tail bounds its D from below. A few positions of every tail
order the candidates; in each round the most promising of every row are evaluated in full, where the best of them
deviates most becomes a witness against all others, and those whose bound exceeds the best D are out. Rounds end when no
row has a candidate left, so the answer is that of the full search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphalloc.fits.search import MARGIN

PROBES = 16  # positions of every tail looked at first, and
TAKEN = 8  # candidates of a row evaluated in one round: both chosen by timing, any number gives the same answer


def tail_exponents(logs: Tensor) -> Tensor:
    """Return alpha_i = 1 + n / Σ_{j>=i} ln(λ_j/λ_i), n = N - i, for every i of every row; inf for a tail of one value.

    ``logs`` [B, N] ascend, -inf where a value takes no part; there the exponent is 1.
    """
    finite = logs.clamp_min(torch.finfo(logs.dtype).min)
    known = torch.where(torch.isinf(logs), 0.0, logs)
    tail_sums = known.flip(1).cumsum(1).flip(1)
    counts = torch.arange(logs.shape[1], 0, -1, device=logs.device, dtype=logs.dtype)
    return 1.0 + counts / (tail_sums - counts * finite).clamp_min(0.0)


def deviations(logs: Tensor, index: Tensor, start: Tensor, alpha: Tensor) -> Tensor:
    """Return 1 - (λ_j/xmin)^(1-alpha) - (j-i)/n [B, K, N] of K tails a row, 0 below each tail's first position.

    ``index`` [B, K]: first positions; ``start`` [B, K]: ln(xmin/λmax); ``alpha`` [B, K].
    """
    columns = torch.arange(logs.shape[1], device=logs.device)
    steps = columns - index[:, :, None]
    fitted = 1.0 - torch.exp((1.0 - alpha[:, :, None]) * (logs[:, None, :] - start[:, :, None]))
    counts = (logs.shape[1] - index)[:, :, None]
    return torch.where(steps >= 0, fitted - steps.to(logs.dtype) / counts, 0.0)


def best_tails(logs: Tensor, candidates: Tensor, *, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return, for every row, the candidate whose tail has the smallest D, and whether there is one at all.

    ``candidates`` [B, N] is a mask. Among those within ``tolerance`` of the smallest D the first wins. Candidates
    whose exponent is not a finite number above 1 are passed over.
    """
    alphas = tail_exponents(logs)
    usable = candidates & torch.isfinite(alphas) & (alphas > 1.0)
    bounds = torch.where(usable, _first_bounds(logs, alphas), torch.inf)
    distances = torch.full_like(bounds, torch.inf)
    best = torch.full_like(bounds[:, :1], torch.inf)
    while bool(torch.isfinite(bounds).any()):
        bound, index = bounds.topk(min(TAKEN, bounds.shape[1]), dim=1, largest=False)
        found = deviations(logs, index, logs.gather(1, index), alphas.gather(1, index)).abs()
        furthest, where = found.max(dim=2)
        furthest = torch.where(torch.isfinite(bound), furthest, torch.inf)
        distances.scatter_reduce_(1, index, furthest, "amin")
        bounds.scatter_(1, index, torch.inf)
        least = furthest.argmin(dim=1, keepdim=True)
        best = torch.minimum(best, furthest.gather(1, least))
        bounds = torch.maximum(bounds, _witness(logs, alphas, where.gather(1, least)))
        bounds = torch.where(bounds > best + tolerance, torch.inf, bounds)
    winners = torch.isfinite(distances) & (distances <= best + tolerance)
    return winners.to(torch.int8).argmax(dim=1), winners.any(dim=1)


def _first_bounds(logs: Tensor, alphas: Tensor) -> Tensor:
    first = torch.arange(logs.shape[1], device=logs.device)
    bounds = torch.zeros_like(logs)
    for probe in range(1, PROBES + 1):
        position = first + (logs.shape[1] - first - 1) * probe // PROBES
        bounds = torch.maximum(bounds, _gaps(logs, alphas, logs[:, position], position))
    return bounds


def _witness(logs: Tensor, alphas: Tensor, position: Tensor) -> Tensor:
    """Bounds from the deviation at one position [B, 1] of every row; tails that begin after it learn nothing."""
    first = torch.arange(logs.shape[1], device=logs.device)
    gaps = _gaps(logs, alphas, logs.gather(1, position), position)
    return torch.where(first <= position, gaps, 0.0)


def _gaps(logs: Tensor, alphas: Tensor, there: Tensor, position: Tensor) -> Tensor:
    """|deviation| of every tail i at ``position`` (whose logarithm is ``there``), less a margin for the last bits."""
    first = torch.arange(logs.shape[1], device=logs.device)
    fitted = 1.0 - torch.exp((1.0 - alphas) * (there - logs))
    gaps = (fitted - (position - first).to(logs.dtype) / (logs.shape[1] - first)).abs() - MARGIN
    return gaps.nan_to_num(0.0, 0.0, 0.0)
