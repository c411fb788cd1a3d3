"""All reading of weights: :func:`open_checkpoint` and the nouns it returns."""

from __future__ import annotations

from alphalloc.checkpoint.matrices import Array, Checkpoint, SkippedTensor, StoredTensor, WeightMatrix
from alphalloc.checkpoint.resolve import open_checkpoint

__all__ = ["Array", "Checkpoint", "SkippedTensor", "StoredTensor", "WeightMatrix", "open_checkpoint"]
