"""Spectra of several matrices of one smaller side at once, in torch on any device: float64 Gram matrices, eigenvalues.

The numerics are those of ``gram``, ``eigenvalues`` and ``esd``: float64 throughout, the same two identities checked on
every matrix, the same eigenvalues dropped. There is no float32 product anywhere, so no TF32 setting can reach a result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from alphalloc.errors import SpectrumCheckError
from alphalloc.spectra.esd import CHECK_TOLERANCE, EPS, broken_identity

# Chosen here: at 4096 rows a slab is 2048 columns, long enough for a full-speed product, small beside the Gram matrix.
SLAB_BYTES = 64 * 2**20
# Chosen here: four bands of rows need 10/16 of the multiplications of a whole product, in bands still wide enough.
BANDS, MIN_BAND_SIDE = 4, 1024
SOLVER_THREADS = 4  # chosen here: on a card one-stage reductions wait for memory, and four of them fill it

Solver = Literal["auto", "batched", "threads"]
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # not in its stubs


@dataclass(frozen=True)
class BatchSpectra:
    """Spectra of B matrices with n rows after orientation, on their device.

    ``values`` [B, n]: all eigenvalues, ascending. ``num_zero`` [B]: how many of the first are numerically zero, that is
    at most n·2.2e-16·λmax. ``squared_norms`` [B]: ‖W‖_F² summed from W. ``finite`` [B]: False where W holds NaN or
    infinity (or squares beyond float64); the row is then zero and means nothing.
    """

    values: Tensor
    num_zero: Tensor
    squared_norms: Tensor
    finite: Tensor


def add_gram(total: Tensor, weight: Tensor, *, slab_bytes: int = SLAB_BYTES) -> Tensor:
    """Add W Wᵀ (WᵀW for a tall W) to ``total`` (n x n, float64) and return ‖W‖_F², a float64 scalar on the device.

    ``weight``: rows x cols of any float type on the same device, upcast slab by slab. Below the diagonal band by band:
    what stands above the diagonal blocks of ``total`` is left as it is (see :func:`lower_squared_norm`).
    """
    rows, cols = weight.shape
    side = min(rows, cols)
    width = max(1, slab_bytes // (8 * side))
    squared_norm = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, max(rows, cols), width):
        part = weight[:, start : start + width] if rows <= cols else weight[start : start + width]
        slab = part.to(torch.float64).contiguous()
        squared_norm += torch.dot(slab.view(-1), slab.view(-1))
        _add_product(total, slab if rows <= cols else slab.T)
    return squared_norm


def lower_squared_norm(grams: Tensor) -> Tensor:
    """Return ‖G‖_F² [B] of the symmetric G whose diagonal blocks and blocks below are those of ``grams`` [B, n, n]."""
    total = torch.zeros(len(grams), dtype=torch.float64, device=grams.device)
    for start, stop in _bands(grams.shape[-1]):
        total += torch.linalg.vector_norm(grams[:, start:stop, start:stop], dim=(1, 2)) ** 2
        if start:
            total += 2.0 * torch.linalg.vector_norm(grams[:, start:stop, :start], dim=(1, 2)) ** 2
    return total


def batch_spectra(
    grams: Tensor, squared_norms: Tensor, eigenvalues: Callable[[Tensor], Tensor], *, tolerance: float = CHECK_TOLERANCE
) -> BatchSpectra:
    """Return the spectra of ``grams`` [B, n, n] (lower triangles) with norms [B], by the solver ``eigenvalues``.

    Both identities, Σλ = ‖W‖_F² and Σλ² = ‖G‖_F², are checked on the device for every finite matrix to ``tolerance``
    (relative), before anything is dropped. Raises BrokenSpectrumError, with the position in the batch, when one is off.
    Rows of ``grams`` that are not finite are overwritten with zeros.
    """
    finite = torch.isfinite(squared_norms)
    grams.masked_fill_(~finite[:, None, None], 0.0)
    values = eigenvalues(grams)
    _check_identities(values, grams, squared_norms, finite, tolerance)
    bound = values.shape[-1] * EPS * values[:, -1:].clamp_min(0.0)
    return BatchSpectra(values, (values <= bound).sum(dim=1), squared_norms, finite)


class BrokenSpectrumError(SpectrumCheckError):
    """An identity does not hold; ``position`` is that of the matrix in its batch."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def symmetric_eigenvalues(grams: Tensor, *, solver: Solver = "auto", threads: int = SOLVER_THREADS) -> Tensor:
    """Return the eigenvalues [B, n] of the symmetric ``grams`` [B, n, n] (lower triangle read), ascending.

    ``solver``: "batched" gives the whole stack to ``torch.linalg.eigvalsh``; "threads" gives one matrix at a time to
    ``threads`` host threads, each with a stream of its own; "auto" takes the first where torch hands stacks on a CUDA
    device to cuSOLVER's batched routine (:func:`has_batched_solver`), else the second. Out of memory "batched" halves
    the stack and the halves go one after the other; one matrix that does not fit alone, and "threads" at any size,
    raise what says so (:func:`is_out_of_memory`). Raises BrokenSpectrumError where the solver does not converge.
    """
    if solver == "auto":
        solver = "batched" if has_batched_solver(grams.device) else "threads"
    if solver == "threads":
        return _by_threads(grams, threads)
    return halving(grams, torch.linalg.eigvalsh)


def halving(grams: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``solve(grams)``; where memory runs out, or a matrix does not converge, that of both halves together.

    One matrix alone that does not fit raises what ``solve`` raised, one that does not converge BrokenSpectrumError.
    """
    try:
        return solve(grams)
    except RuntimeError as exc:  # torch.OutOfMemoryError and LinAlgError are both
        half = len(grams) // 2
        if isinstance(exc, LinAlgError) and not half:
            raise _not_converged(grams, exc) from exc
        if not half or not (is_out_of_memory(exc) or isinstance(exc, LinAlgError)):
            raise
    first = halving(grams[:half], solve)
    try:
        return torch.cat([first, halving(grams[half:], solve)])
    except BrokenSpectrumError as exc:
        raise BrokenSpectrumError(str(exc), exc.position + half) from exc


def has_batched_solver(device: torch.device) -> bool:
    """Whether ``torch.linalg.eigvalsh`` computes a stack of matrices at once on ``device``, and rightly.

    torch 2.12 or newer does where it is built with CUDA 12.6 or newer. The routine of CUDA 12.6 (cuSOLVER 11.7.1) gives
    wrong results in memory that was used before, which torch's always is; that of 12.8 (11.7.3) does not.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return _version(torch.__version__) >= (2, 12) and _version(torch.version.cuda) >= (12, 8)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on a card or on the host, in torch or in the libraries below it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("ALLOC_FAILED", "out of memory", "can't allocate memory")
    )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _bands(side: int) -> list[tuple[int, int]]:
    count = BANDS if side >= MIN_BAND_SIDE else 1
    edges = [side * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _add_product(total: Tensor, slab: Tensor) -> None:
    for start, stop in _bands(len(total)):
        total[start:stop, :stop].addmm_(slab[start:stop], slab[:stop].T)


def _by_threads(grams: Tensor, threads: int) -> Tensor:
    """One matrix a call; the results do not depend on the number of threads."""
    module = torch.get_device_module(grams.device)
    values = torch.empty(grams.shape[:2], dtype=grams.dtype, device=grams.device)
    ready = module.Event()
    ready.record(module.current_stream())

    def solve(position: int) -> None:
        torch.set_num_threads(1)  # counts for the calling thread alone
        module.set_device(grams.device)
        own = module.Stream()
        with module.stream(own):
            own.wait_event(ready)
            try:
                values[position] = torch.linalg.eigvalsh(grams[position])
            except LinAlgError as exc:
                raise BrokenSpectrumError(str(_not_converged(grams, exc)), position) from exc
            done = module.Event()
            done.record(own)
            done.synchronize()

    with ThreadPoolExecutor(max(1, min(threads, len(grams))), "alphalloc-eigen") as executor:
        list(executor.map(solve, range(len(grams))))
    return values


def _not_converged(grams: Tensor, error: Exception) -> BrokenSpectrumError:
    side = grams.shape[-1]
    return BrokenSpectrumError(f"the eigensolver did not converge on a {side}-sided matrix: {error}", 0)


def _check_identities(values: Tensor, grams: Tensor, squared_norms: Tensor, finite: Tensor, tolerance: float) -> None:
    """One transfer from the device for the whole batch; the identities themselves are summed there."""
    found = torch.stack([values.sum(dim=1), squared_norms, (values * values).sum(dim=1), lower_squared_norm(grams)])
    bad_trace = ~((found[0] - found[1]).abs() <= tolerance * found[1].abs())
    bad_norm = ~((found[2] - found[3]).abs() <= tolerance * found[3].abs())
    broken = torch.cat([found, (bad_trace & finite)[None].double(), (bad_norm & finite)[None].double()]).cpu()
    for position in range(len(values)):
        trace, norm2, squares, gram2, first, second = broken[:, position].tolist()
        if first:
            raise BrokenSpectrumError(broken_identity("trace", trace, norm2), position)
        if second:
            raise BrokenSpectrumError(broken_identity("frobenius", squares, gram2), position)
