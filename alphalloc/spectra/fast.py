"""Eigenvalues in float32 with the smallest one corrected in float64: faster on a card, not exact (torch).

float32 rounding is n·6e-8·λmax and hides the smallest eigenvalues. Estimators that only look at the upper part of a
spectrum do not see it; where the spectrum begins, which the smallest eigenvalue alone decides, is computed in float64
by inverse iteration with a Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alphalloc.spectra.esd import EPS

FAST_TOLERANCE = 1e-4  # on both identities; what float32 leaves of them, with room (measured: below 2e-7)
BLOCK, ROUNDS = 32, 16  # vectors and rounds of the inverse iteration; chosen here: λmin to 1e-7 on real matrices
LOWEST_MEDIAN = 1e-5  # of λmax; with the bulk below that, alphas moved by up to 30 % (low rank plus little noise)
SETTLED = 1e-6  # relative change of λmin in the last round above which a matrix is solved in float64


def fast_eigenvalues(grams: Tensor, *, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the eigenvalues [B, n] of the positive ``grams`` [B, n, n] (float64, lower triangle read), ascending.

    ``solve`` gives the eigenvalues of a stack; it is called in float32 on G·n/tr(G). None is below the smallest, which
    is computed in float64. Solved in float64 altogether are matrices that are singular or nearly so, since float32
    cannot tell how many of their eigenvalues are zero, and those whose median eigenvalue float32 hides.
    """
    side = grams.shape[-1]
    means = grams.diagonal(dim1=1, dim2=2).mean(dim=1)
    safe = torch.where(means > 0, means, 1.0)
    values = solve((grams / safe[:, None, None]).to(torch.float32)).to(torch.float64) * safe[:, None]
    smallest, regular = _smallest_eigenvalues(grams)
    regular &= smallest > 16 * side * EPS * values[:, -1]
    regular &= values[:, side // 2] > LOWEST_MEDIAN * values[:, -1]
    values = torch.maximum(values, torch.where(regular, smallest, -torch.inf)[:, None])
    values[:, 0] = torch.where(regular, smallest, values[:, 0])
    singular = (~regular).nonzero()[:, 0]
    if len(singular):
        values[singular] = solve(grams[singular])
    return values


def _smallest_eigenvalues(grams: Tensor) -> tuple[Tensor, Tensor]:
    """λmin [B] in float64, by block inverse iteration with Rayleigh-Ritz, and whether it could be had and settled."""
    factor, info = torch.linalg.cholesky_ex(grams)
    regular = info == 0
    eye = torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)
    factor = torch.where(regular[:, None, None], factor, eye)
    generator = torch.Generator(device="cpu").manual_seed(0)
    block = torch.randn(grams.shape[-1], min(BLOCK, grams.shape[-1]), dtype=grams.dtype, generator=generator)
    vectors = torch.linalg.qr(block.to(grams.device))[0].expand(len(grams), -1, -1)
    before = ritz = torch.zeros(len(grams), dtype=grams.dtype, device=grams.device)
    for _ in range(ROUNDS):
        solved, before = torch.cholesky_solve(vectors, factor), ritz
        ritz = torch.linalg.eigvalsh(vectors.mT @ solved)[:, -1]
        vectors = torch.linalg.qr(solved)[0]
    return 1.0 / ritz, regular & ((ritz - before).abs() <= SETTLED * ritz)
