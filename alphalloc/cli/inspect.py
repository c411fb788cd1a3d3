"""``alphalloc inspect MODEL``: what a checkpoint holds and what would be analysed, from its headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alphalloc.cli import options, output, render
from alphalloc.cli.text import byte_size, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from alphalloc.checkpoint import Checkpoint


def inspect(
    model: options.Model,
    revision: options.Revision = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    layer_pattern: options.LayerPattern = None,
    embeddings: options.Embeddings = False,
    as_json: options.AsJson = False,
) -> None:
    """List what MODEL holds and what would be analysed.

    Reads headers only. What is left out is listed with the reason.
    """
    from alphalloc.checkpoint import open_checkpoint
    from alphalloc.documents import pretty_json

    checkpoint = open_checkpoint(
        model,
        revision=revision,
        layer_pattern=layer_pattern,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        embeddings=embeddings,
    )
    if as_json:
        output.print_json(pretty_json(inspection(checkpoint)))
    else:
        render.print_table(lambda _: _report(checkpoint))


def inspection(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the inspection as plain values: ``model``, ``matrices``, ``skipped`` and ``totals``."""
    blocks = {(matrix.stack, matrix.layer) for matrix in checkpoint.matrices if matrix.layer >= 0}
    return {
        "kind": "CheckpointInspection",
        "schema_version": "1.0",
        "model": {
            "id": checkpoint.model_id,
            "revision": checkpoint.revision,
            "commit": checkpoint.commit,
            "fingerprint": checkpoint.fingerprint,
            "format": checkpoint.format,
            "architecture": checkpoint.architecture,
            "quantized": checkpoint.quantized,
            "files": [str(path) for path in checkpoint.files],
        },
        "matrices": [
            {
                "name": matrix.name,
                "module": matrix.module,
                "stack": matrix.stack,
                "layer": matrix.layer,
                "role": matrix.role,
                "shape": list(matrix.shape),
                "dtype": matrix.dtype,
                "nbytes": matrix.nbytes,
                "quantized": matrix.quantized,
            }
            for matrix in checkpoint.matrices
        ],
        "skipped": [
            {"name": tensor.name, "shape": list(tensor.shape), "reason": tensor.reason} for tensor in checkpoint.skipped
        ],
        "totals": {
            "num_layers": len(blocks),
            "num_matrices": len(checkpoint.matrices),
            "num_skipped": len(checkpoint.skipped),
            "nbytes": sum(matrix.nbytes for matrix in checkpoint.matrices),
        },
    }


def _report(checkpoint: Checkpoint) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(plain(checkpoint.model_id), style="bold"), _table(checkpoint), Text(_caption(checkpoint)))


def _table(checkpoint: Checkpoint) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "shape", "dtype", "bytes", "layer", "role", "analysed"):
        table.add_column(heading, justify="right" if heading in ("bytes", "layer") else "left", overflow="fold")
    for matrix in checkpoint.matrices:
        layer = "-" if matrix.layer < 0 else f"{plain(matrix.stack)} {matrix.layer}".strip()
        size = f"{matrix.nbytes:,}"
        answer = "yes, dequantised" if matrix.quantized else "yes"
        table.add_row(plain(matrix.name), _shape(matrix.shape), matrix.dtype, size, layer, plain(matrix.role), answer)
    for tensor in checkpoint.skipped:
        table.add_row(plain(tensor.name), _shape(tensor.shape), "", "", "", "", f"no: {plain(tensor.reason)}")
    return table


def _caption(checkpoint: Checkpoint) -> str:
    totals = inspection(checkpoint)["totals"]
    kind = f"{checkpoint.format}, quantised weights" if checkpoint.quantized else checkpoint.format
    return (
        f"{kind}; {totals['num_matrices']} matrices in {totals['num_layers']} layers would be analysed "
        f"({byte_size(totals['nbytes'])}), {totals['num_skipped']} tensors left out"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
