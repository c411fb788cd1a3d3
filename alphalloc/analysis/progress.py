"""What a running analysis reports."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

from alphalloc.alphas import LayerAlpha, MatrixAlpha, layer_alphas
from alphalloc.analysis.plan import cost
from alphalloc.checkpoint.matrices import WeightMatrix


@dataclass(frozen=True)
class Progress:
    """State after one finished matrix: matrices and bytes of the checkpoint done and in all, and its tensor name.

    ``cached``: this spectrum came from the cache; ``num_cached``: so many did until now. ``device``: what computed it,
    "cpu" or "cuda". ``seconds`` since the start.
    ``bytes_per_second`` counts what was read from the weights alone (0 before the first). ``seconds_left``: by the
    pace of the work done so far, as if nothing more came from the cache; None before the first computed matrix.
    ``layer``: the layer that this matrix completed, as it stands in the result unless missing alphas are filled there.
    """

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    name: str
    cached: bool = False
    num_cached: int = 0
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    layer: LayerAlpha | None = None
    device: str = "cpu"


class Meter:
    """Counts finished matrices and makes a :class:`Progress` of each."""

    def __init__(self, matrices: tuple[WeightMatrix, ...]) -> None:
        self.started = time.monotonic()
        self.total, self.bytes_total = len(matrices), sum(matrix.nbytes for matrix in matrices)
        self.done = self.num_cached = self.bytes_done = self.bytes_fresh = 0
        self.cost_left, self.cost_fresh = sum(map(cost, matrices)), 0.0
        self._matrices = matrices
        self._blocks: dict[tuple[str, int], dict[int, MatrixAlpha | None]] = defaultdict(dict)
        for position, matrix in enumerate(matrices):
            if matrix.layer >= 0:
                self._blocks[matrix.stack, matrix.layer][position] = None

    def step(self, position: int, alpha: MatrixAlpha | None, *, cached: bool, device: str = "cpu") -> Progress:
        """Return the state after the matrix at ``position``; ``alpha``: what is known of it, None to tell no layers."""
        matrix = self._matrices[position]
        seconds = time.monotonic() - self.started
        self.done += 1
        self.bytes_done += matrix.nbytes
        self.cost_left -= cost(matrix)
        if cached:
            self.num_cached += 1
        else:
            self.bytes_fresh += matrix.nbytes
            self.cost_fresh += cost(matrix)
        left = None
        if self.done == self.total:
            left = 0.0
        elif self.cost_fresh:
            left = max(self.cost_left, 0.0) * seconds / self.cost_fresh
        return Progress(
            self.done,
            self.total,
            self.bytes_done,
            self.bytes_total,
            matrix.name,
            cached,
            self.num_cached,
            seconds,
            self.bytes_fresh / seconds if seconds > 0 else 0.0,
            left,
            None if alpha is None else self._completed(position, alpha),
            device,
        )

    def _completed(self, position: int, alpha: MatrixAlpha) -> LayerAlpha | None:
        """Return the layer of the matrix when this was its last one."""
        matrix = self._matrices[position]
        block = self._blocks.get((matrix.stack, matrix.layer))
        if block is None:
            return None
        block[position] = alpha
        known = [one for one in block.values() if one is not None]
        return layer_alphas(known)[0] if len(known) == len(block) else None
