"""``alphalloc export SCHEDULE.json --to NAME``: the schedule in some trainer's own words."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphalloc.cli import options, output, render
from alphalloc.cli.text import did_you_mean
from alphalloc.documents import MAX_DOCUMENT_BYTES, read_text
from alphalloc.errors import InvalidParameterError, OutputError

if TYPE_CHECKING:
    from alphalloc.allocation import ExpertSchedule


class Method(enum.StrEnum):
    """What a trainer that can have both gets."""

    lora = "lora"
    moe = "moe"


Schedule = Annotated[Path, typer.Argument(metavar="SCHEDULE.json", help="What allocate -o wrote.", show_default=False)]
Target = Annotated[str, typer.Option("--to", metavar="NAME", help="The trainer: peft, axolotl, trl, mola, json, ...")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout.")]
Into = Annotated[
    Path | None, typer.Option(metavar="FILE.yaml", help="Set the keys in this file's text; comments and order stay.")
]
Rank = Annotated[int | None, typer.Option("--rank", "-r", metavar="R", help="Rank of each expert.  [default: 8]")]
LoraAlpha = Annotated[float, typer.Option(metavar="A", help="LoRA's factor; the scale is lora_alpha / rank.")]
Dropout = Annotated[float, typer.Option(metavar="P", help="Dropout on the adapter's input.")]
Targets = Annotated[
    str | None, typer.Option("--target-modules", metavar="A,B", help="Modules to adapt.  [default: all linears]")
]
MethodOption = Annotated[Method, typer.Option(help="Plain LoRA of rank experts x r, or our MoE-LoRA.")]
BlockList = Annotated[str | None, typer.Option(metavar="NAME", help="The name before the block index in module paths.")]
Average = Annotated[bool, typer.Option("--average", help="Let targets with one number have the rounded mean.")]
Base = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Base model: keys are checked against it; makes --init-adapter."),
]
InitAdapter = Annotated[
    str, typer.Option(metavar="FOLDER", help="Untouched adapter for trainers that only take an adapter's path.")
]


def export(
    schedule_file: Schedule,
    to: Target,
    output_file: Output = None,
    into: Into = None,
    rank: Rank = None,
    lora_alpha: LoraAlpha = 16,
    lora_dropout: Dropout = 0.0,
    target_modules: Targets = None,
    method: MethodOption = Method.lora,
    block_list: BlockList = None,
    average: Average = False,
    model: Base = None,
    init_adapter: InitAdapter = "init_adapter",
    quiet: options.Quiet = False,
) -> None:
    """Print SCHEDULE.json in the words of a trainer, or write it into a file.

    With --model and a trainer that goes on from an adapter's path (llamafactory), the adapter is made too.
    """
    output.check_outputs({"--output": output_file}, inputs=[schedule_file])

    from alphalloc.allocation import ExpertSchedule
    from alphalloc.export import EXPORTERS, ExportOptions, write_init_adapter
    from alphalloc.export import export as export_to

    if to not in EXPORTERS:
        raise InvalidParameterError(f"no export target {to!r}{did_you_mean(to, EXPORTERS)}")
    schedule = ExpertSchedule.load(schedule_file)
    chosen = ExportOptions(
        r=rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=None if target_modules is None else tuple(target_modules.split(",")),
        method=method.value,
        block_list=block_list,
        module_paths=() if model is None else _module_paths(model, schedule),
        average=average,
        init_adapter=init_adapter,
    )
    result = export_to(schedule, to, chosen, into=None if into is None else _read(into))
    written = []
    if model is not None and init_adapter in result.text:
        _refuse_existing(Path(init_adapter))
        written.append(write_init_adapter(schedule, chosen, model, init_adapter))
    if output_file is None:
        output.print_text(result.text)
    else:
        output.write_outputs({output_file: result.text})
        written.append(output_file)
    if not quiet:
        render.closing_notes(result.notes, written)


def _module_paths(model: str, schedule: ExpertSchedule) -> tuple[str, ...]:
    """Return the paths of the model's linears after checking that the schedule is for its layers."""
    from alphalloc.allocation import ModuleShapes, check_against_model
    from alphalloc.checkpoint import open_checkpoint

    matrices = open_checkpoint(model, split_fused=False).matrices
    check_against_model(schedule, ModuleShapes.of_matrices(matrices))
    return tuple(matrix.module for matrix in matrices)


def _read(path: Path) -> str:
    try:
        return read_text(path, MAX_DOCUMENT_BYTES)
    except (OSError, ValueError) as exc:
        raise InvalidParameterError(f"--into {path}: cannot be read: {exc}") from exc


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder; choose another with --init-adapter")
