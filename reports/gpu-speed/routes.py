"""Ways from a stack of symmetric float64 matrices to their eigenvalues, tried beside the vendor's one-stage solver.

Each takes [B, n, n] (full, symmetric) and returns [B, n] ascending. ``ROUTES`` maps their names to them.

- *vendor, batched* / *vendor, n threads*: ``torch.linalg.eigvalsh`` on the stack, or one matrix a host thread.
- *cupy*: the same vendor routine through CuPy, where it is installed.
- *one-stage, blocked*: Householder tridiagonalisation of the whole stack in step (LAPACK's sytrd with its delayed
  rank-2k update as a matrix product), then bisection by Sturm counts.
- *two-stage*: to a band by QR of panels and matrix products alone, the band to tridiagonal by chasing bulges along a
  wavefront (all matrices and all bulges of one step together), then the same bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from alphalloc.spectra.batched import symmetric_eigenvalues

Route = Callable[[Tensor], Tensor]

WIDTH = 16  # of the band: wider ones make better products and costlier bulges; chosen here, to be tried on a card


def householder(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(v, tau, beta) with (I - tau v vᵀ) x = beta e₁ and v₁ = 1, for every row of ``x`` [..., m]."""
    first = x[..., 0]
    norm = torch.linalg.vector_norm(x, dim=-1)
    beta = torch.where(first > 0, -norm, norm)
    nothing = torch.linalg.vector_norm(x[..., 1:], dim=-1) == 0
    scale = torch.where(nothing, 1.0, first - beta)
    v = torch.where(nothing[..., None], 0.0, x / scale[..., None])
    v[..., 0] = 1.0
    tau = torch.where(nothing, 0.0, (beta - first) / torch.where(nothing, 1.0, beta))
    return v, tau, torch.where(nothing, first, beta)


def one_stage(grams: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    """Diagonal [B, n] and off-diagonal [B, n-1] of the tridiagonal form, all matrices in step."""
    work, (count, side, _) = grams.clone(), grams.shape
    diagonal, off = work.new_zeros(count, side), work.new_zeros(count, max(side - 1, 0))
    for start in range(0, side, block):
        width = min(block, side - start)
        left, right = (work.new_zeros(count, side, width) for _ in range(2))
        for j in range(width):
            at = start + j
            mine, other = left[:, at, :j, None], right[:, at, :j, None]
            column = work[:, at:, at] - (left[:, at:, :j] @ other + right[:, at:, :j] @ mine)[:, :, 0]
            diagonal[:, at] = column[:, 0]
            if at == side - 1:
                break
            v, tau, off[:, at] = householder(column[:, 1:])
            v = v[:, :, None]
            below = slice(at + 1, None)
            product = work[:, below, below] @ v
            product -= left[:, below, :j] @ (right[:, below, :j].mT @ v)
            product -= right[:, below, :j] @ (left[:, below, :j].mT @ v)
            product *= tau[:, None, None]
            product -= 0.5 * tau[:, None, None] * (v.mT @ product) * v
            left[:, below, j], right[:, below, j] = v[:, :, 0], product[:, :, 0]
        rest = slice(start + width, None)
        work[:, rest, rest] -= left[:, rest] @ right[:, rest].mT + right[:, rest] @ left[:, rest].mT
    return diagonal, off


def to_band(grams: Tensor, width: int) -> Tensor:
    """The similar band matrices [B, n, n] of half-bandwidth ``width``: QR of panels, two-sided block reflections."""
    work, side = grams.clone(), grams.shape[-1]
    for start in range(0, side - width - 1, width):
        rest = slice(start + width, None)
        packed, tau = torch.geqrf(work[:, rest, start : start + width].contiguous())
        size = min(packed.shape[1:])
        v = packed.tril(-1)[:, :, :size]
        v.diagonal(dim1=1, dim2=2).fill_(1.0)
        tau = tau[:, :size]
        v = torch.where((tau == 0)[:, None, :], 0.0, v)
        inverse = (v.mT @ v).triu(1) + torch.diag_embed(1.0 / torch.where(tau == 0, 1.0, tau))
        v_t = torch.linalg.solve_triangular(inverse, v, upper=True, left=False)  # V T
        corner = packed.triu()
        work[:, rest, start : start + width] = corner
        work[:, start : start + width, rest] = corner.mT
        trailing = work[:, rest, rest]
        y = trailing @ v_t
        y -= 0.5 * v @ (v_t.mT @ y)
        work[:, rest, rest] -= y @ v.mT + v @ y.mT
    return work


def chase(band: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Tridiagonal form of band matrices [B, n, n]: sweep s removes column s, its bulge is chased off the end.

    Step k of sweep s works on rows from s + 1 + (k-1)·width on; those of one time 4s + k are disjoint and go together.
    """
    side = band.shape[-1]
    pad = 3 * width + 1
    work = torch.nn.functional.pad(band, (0, pad, 0, pad))
    steps = -(-side // width) + 1
    reach = torch.arange(3 * width, device=band.device)
    for time in range(4 * (side - 2) + steps if side > 2 else 0):
        sweeps = torch.arange(max(0, -(-(time - steps + 1) // 4)), min(time // 4, side - 3) + 1, device=band.device)
        step = time - 4 * sweeps
        # Rows to mix: s+1+step·w and the width-1 below; the column to clear: s, or where the bulge begins.
        first = sweeps + 1 + step * width
        sweeps, step, first = (some[first < side - 1] for some in (sweeps, step, first))
        if not len(sweeps):
            continue
        column = torch.where(step == 0, sweeps, first - width)
        rows = first[:, None] + reach[None, :width]
        v, tau, _ = householder(work[:, rows, column[:, None]])
        # Everything these rows meet: from the cleared column (at most width before them) to 2·width after their first.
        others = (first - width)[:, None] + reach[None, :]
        others = torch.where(others >= 0, others, side + pad - 1)  # before the matrix: a column of zeros
        part = work[:, rows[:, :, None], others[:, None, :]]
        part -= tau[..., None, None] * v[..., :, None] * (v[..., None, :] @ part)
        work[:, rows[:, :, None], others[:, None, :]] = part
        part = work[:, others[:, :, None], rows[:, None, :]]
        part -= tau[..., None, None] * (part @ v[..., :, None]) * v[..., None, :]
        work[:, others[:, :, None], rows[:, None, :]] = part
    diagonal = work.diagonal(dim1=1, dim2=2)[:, :side]
    return diagonal, work.diagonal(offset=-1, dim1=1, dim2=2)[:, : max(side - 1, 0)]


def bisect(diagonal: Tensor, off: Tensor, rounds: int = 56) -> Tensor:
    """Eigenvalues [B, n] of tridiagonal matrices: brackets from Gershgorin, halved ``rounds`` times by Sturm counts."""
    side = diagonal.shape[1]
    squares = off * off
    radius = torch.nn.functional.pad(off.abs(), (1, 0)) + torch.nn.functional.pad(off.abs(), (0, 1))
    low = (diagonal - radius).amin(dim=1, keepdim=True).expand(-1, side).clone()
    high = (diagonal + radius).amax(dim=1, keepdim=True).expand(-1, side).clone()
    wanted = torch.arange(side, device=diagonal.device)
    tiny = torch.finfo(diagonal.dtype).tiny * squares.amax(dim=1, keepdim=True).clamp_min(1.0)
    shift, below = torch.empty_like(low), torch.empty_like(low)
    count = _graphed(partial(_sturm, diagonal, squares, tiny, shift, below), diagonal.device)
    for _ in range(rounds):
        torch.add(low, high, out=shift).mul_(0.5)
        count()
        less = below <= wanted
        low, high = torch.where(less, shift, low), torch.where(less, high, shift)
    return 0.5 * (low + high)


def _sturm(diagonal: Tensor, squares: Tensor, tiny: Tensor, shift: Tensor, below: Tensor) -> None:
    """``below`` = how many eigenvalues lie below ``shift``: negative pivots of the LDLᵀ of T - shift."""
    below.zero_()
    pivot = torch.ones_like(shift)
    for row in range(diagonal.shape[1]):
        torch.sub(diagonal[:, row : row + 1] - shift, squares[:, row - 1 : row] / pivot if row else 0.0, out=pivot)
        pivot = torch.where(pivot.abs() < tiny, -tiny, pivot)
        below += pivot < 0


def _graphed(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``work`` as one CUDA graph: thousands of small launches cost a fifth of what they do one by one."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def blocked_route(grams: Tensor) -> Tensor:
    return bisect(*one_stage(grams))


def two_stage_route(grams: Tensor, width: int = WIDTH) -> Tensor:
    side = grams.shape[-1]
    width = max(2, min(width, side // 2))
    return bisect(*(chase(to_band(grams, width), width) if side > 2 else one_stage(grams)))


def cupy_route(grams: Tensor) -> Tensor:
    import cupy  # only where someone installed it

    return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(grams)))


ROUTES: dict[str, Route] = {
    "vendor, batched": partial(symmetric_eigenvalues, solver="batched"),
    "vendor, 2 threads": partial(symmetric_eigenvalues, solver="threads", threads=2),
    "vendor, 4 threads": partial(symmetric_eigenvalues, solver="threads", threads=4),
    "vendor, 8 threads": partial(symmetric_eigenvalues, solver="threads", threads=8),
    "cupy": cupy_route,
    "one-stage, blocked": blocked_route,
    "two-stage": two_stage_route,
}
