"""What a fine-tuned model changed: every matrix minus that of its base."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import PurePath

from alphalloc.checkpoint.matrices import Checkpoint, WeightMatrix
from alphalloc.checkpoint.values import DifferenceLoad, LowRankLoad
from alphalloc.errors import CheckpointError, UnsupportedCheckpointError


def minus_base(model: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Return ``model`` with every matrix replaced by its difference from the one of the same name in ``base``.

    Matrices are paired by name, or by block and role where the two are in formats that spell names differently. The
    values are subtracted in float64. Raises CheckpointError when a matrix of one is missing in the other or has
    another shape, UnsupportedCheckpointError for an adapter, which is a difference already.
    """
    for one in (model, base):
        if any(isinstance(matrix.load, LowRankLoad) for matrix in one.matrices):
            raise UnsupportedCheckpointError(
                f"{one.model_id}: is an adapter, a difference from its base already; analyse it without base"
            )
    by_name = {matrix.name for matrix in model.matrices} & {matrix.name for matrix in base.matrices}
    ours, theirs = (_keyed(one, bool(by_name)) for one in (model, base))
    for here, there, owner, other in ((ours, theirs, model, base), (theirs, ours, base, model)):
        missing = [key for key in here if key not in there]
        if missing:
            raise CheckpointError(
                f"{other.model_id}: {len(missing)} of the matrices of {owner.model_id} are missing, the first is "
                f"{here[missing[0]].name!r}; give the model and the base it was tuned from, or exclude them"
            )
    matrices = tuple(_minus(matrix, theirs[key]) for key, matrix in ours.items())
    both = hashlib.sha256(f"{model.fingerprint} - {base.fingerprint}".encode()).hexdigest()
    return replace(
        model,
        fingerprint=f"sha256:{both}",
        quantized=any(matrix.quantized for matrix in matrices),
        matrices=matrices,
        files=model.files + base.files,
        notes=(
            *model.notes,
            *base.notes,
            f"every matrix is the difference from that of {PurePath(base.model_id).name}",
        ),
    )


def _keyed(checkpoint: Checkpoint, by_name: bool) -> dict[tuple[object, ...], WeightMatrix]:
    if by_name:
        return {(matrix.name,): matrix for matrix in checkpoint.matrices}
    found: dict[tuple[object, ...], WeightMatrix] = {}
    for matrix in checkpoint.matrices:
        part = matrix.name.partition("[")[2]
        found[matrix.stack, matrix.layer, matrix.role, matrix.module, part] = matrix
    return found


def _minus(matrix: WeightMatrix, other: WeightMatrix) -> WeightMatrix:
    if matrix.shape != other.shape:
        raise CheckpointError(
            f"{matrix.name}: is {matrix.shape[0]} x {matrix.shape[1]} in the model and {other.shape[0]} x "
            f"{other.shape[1]} in the base; give the base the model was tuned from"
        )
    return replace(
        matrix,
        nbytes=matrix.nbytes + other.nbytes,
        quantized=matrix.quantized or other.quantized,
        # no file holds it: nothing must take the spectrum of the model's own matrix for that of the difference
        source="memory" if matrix.source == other.source == "memory" else f"{matrix.source} - {other.source}",
        load=DifferenceLoad(matrix.load, other.load),
        offset=None,
    )
