"""What an analysis has to say beside its numbers: warnings, and what strict mode refuses."""

from __future__ import annotations

from alphalloc.alphas import LayerAlpha, MatrixAlpha
from alphalloc.checkpoint import Checkpoint, SkippedTensor
from alphalloc.errors import StrictError


def require_clean(matrices: tuple[MatrixAlpha, ...], skipped: tuple[SkippedTensor, ...]) -> None:
    """Raise StrictError for a tensor that one would expect to be analysed and is not, and for one without alpha."""
    lost = [tensor for tensor in skipped if not tensor.by_design]
    if lost:
        listed = "; ".join(f"{tensor.name}: {tensor.reason}" for tensor in lost[:5])
        raise StrictError(f"{len(lost)} tensors cannot be analysed, and strict was asked for: {listed}")
    bad = [matrix for matrix in matrices if matrix.alpha is None]
    if bad:
        listed = "; ".join(f"{matrix.name}: {matrix.status} ({matrix.reason})" for matrix in bad[:5])
        raise StrictError(f"{len(bad)} of {len(matrices)} matrices have no alpha, and strict was asked for: {listed}")


def warnings_of(
    checkpoint: Checkpoint, matrices: tuple[MatrixAlpha, ...], layers: tuple[LayerAlpha, ...]
) -> tuple[str, ...]:
    """Return what a reader of the alphas should know: choices of files, quantised, bad, missing and filled ones."""
    found = list(checkpoint.notes)
    if checkpoint.quantized:
        found.append("alphas are of quantised weights, dequantised")
    bad = sum(matrix.alpha is None for matrix in matrices)
    if bad:
        found.append(f"{bad} of {len(matrices)} matrices have no alpha and do not enter their layer's mean")
    unexpected = [tensor for tensor in checkpoint.skipped if not tensor.by_design]
    if unexpected:
        first = f"{unexpected[0].name} ({unexpected[0].reason})"
        found.append(f"{len(unexpected)} tensors that one would expect were left out, the first {first}")
    found += _gaps(layers)
    filled = [str(layer.layer) for layer in layers if layer.filled]
    if filled:
        found.append(f"layers filled with the median alpha: {', '.join(filled)}")
    return tuple(found)


def _gaps(layers: tuple[LayerAlpha, ...]) -> list[str]:
    """Say which block indices below the highest of their stack have no matrix at all."""
    indices: dict[str, set[int]] = {}
    for layer in layers:
        indices.setdefault(layer.stack, set()).add(layer.layer)
    notes = []
    for stack, present in indices.items():
        missing = max(present) + 1 - len(present)
        if missing and missing <= 10_000:
            first = next(index for index in range(max(present)) if index not in present)
            where = f" of {stack}" if stack else ""
            notes.append(f"{missing} layers{where} have no matrix to analyse, the first is layer {first}")
        elif missing:
            notes.append(f"layer indices up to {max(present)} with {len(present)} layers: check --layer-pattern")
    return notes


def nothing_message(checkpoint: Checkpoint) -> str:
    """Return what NothingToAnalyzeError says."""
    reasons = "; ".join(f"{tensor.name}: {tensor.reason}" for tensor in checkpoint.skipped[:5])
    return f"no weight matrix of {checkpoint.model_id} is left to analyse; check include and exclude ({reasons})"
