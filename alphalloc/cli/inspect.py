"""``alphalloc inspect MODEL``: what a checkpoint holds and what would be analysed, from its headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alphalloc.cli import options, output, planning, render
from alphalloc.cli.text import byte_size, plain
from alphalloc.errors import MemoryBudgetError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from alphalloc.analysis.plan import Plan, Speed
    from alphalloc.checkpoint import Checkpoint


def inspect(
    model: options.Model,
    revision: options.Revision = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    layer_pattern: options.LayerPattern = None,
    embeddings: options.Embeddings = False,
    keep_fused: options.KeepFused = False,
    workers: options.Workers = None,
    memory: options.Memory = None,
    as_json: options.AsJson = False,
) -> None:
    """List what MODEL holds, what would be analysed, and the plan: order, memory, estimated time.

    Reads headers only, of a model on the hub too. What is left out is listed with the reason.
    """
    planning.check_memory(memory)
    from alphalloc.checkpoint import open_checkpoint
    from alphalloc.documents import pretty_json

    checkpoint = open_checkpoint(
        model,
        revision=revision,
        layer_pattern=layer_pattern,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        embeddings=embeddings,
        split_fused=not keep_fused,
        headers_only=True,
    )
    plan: tuple[Plan, Speed] | str
    try:
        plan = planning.planned(checkpoint, memory=memory, workers=workers)
    except MemoryBudgetError as exc:  # what the checkpoint holds can be listed all the same
        plan = str(exc)
    if as_json:
        values = {"refused": plan} if isinstance(plan, str) else planning.plan_values(*plan)
        output.print_json(pretty_json(inspection(checkpoint) | {"plan": values}))
    else:
        render.print_table(lambda _: _report(checkpoint, plan))


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


def _report(checkpoint: Checkpoint, plan: tuple[Plan, Speed] | str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    title = Text(plain(checkpoint.model_id), style="bold")
    parts: list[RenderableType] = [title, _table(checkpoint), Text(_caption(checkpoint))]
    if isinstance(plan, str):
        return Group(*parts, Text(f"no plan: {plain(plan)}"))
    return Group(*parts, planning.plan_table(plan[0]), Text(planning.plan_line(*plan)))


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
