"""What ``analyze`` can measure beside alpha: the options, and how the answers are shown."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphalloc.cli import output, render
from alphalloc.cli.text import plain
from alphalloc.errors import InvalidParameterError

if TYPE_CHECKING:
    from rich.table import Table

    from alphalloc.alphas import MatrixAlpha, ModelAlphas
    from alphalloc.analysis.estimators import EstimatorView

REJECTED = 0.1  # Clauset et al. (arXiv 0706.1062) rule a power law out below this p-value


class Sampling(enum.StrEnum):
    """Whose eigenvalues are fitted."""

    whole = "whole"
    farms = "farms"


Stability = Annotated[bool, typer.Option("--stability", help="Give each alpha a band; count spikes beyond noise.")]
Gof = Annotated[bool, typer.Option("--gof", help="Test whether each tail is a power law: p-value, likelihood ratios.")]
Randomize = Annotated[bool, typer.Option("--randomize", help="Measure the distance of each spectrum from noise.")]
Histograms = Annotated[bool, typer.Option("--histograms", help="Keep each spectrum's histogram, for reports.")]
SamplingOption = Annotated[Sampling, typer.Option(help="Whole matrices, or FARMS: pooled windows of one shape.")]
FarmsRows = Annotated[int | None, typer.Option(metavar="N", min=1, help="Rows of a FARMS window.  [default: 2000]")]
FarmsRatio = Annotated[float | None, typer.Option(metavar="Q", help="Its columns over its rows.  [default: 1]")]
FarmsWindows = Annotated[int | None, typer.Option(metavar="N", min=1, help="FARMS windows per axis.  [default: 15]")]
Estimators = Annotated[
    str | None,
    typer.Option("--estimators", metavar="LIST", help="Compare estimators side by side: all, or names with commas."),
]


def measuring(
    stability: bool, gof: bool, randomize: bool, sampling: Sampling, farms: dict[str, float | None]
) -> dict[str, Any]:
    """Return the keywords of ``analyze`` that were asked for. Raises InvalidParameterError for a contradiction."""
    asked: dict[str, Any] = {"stability": stability, "gof": gof, "randomize": randomize}
    asked = {name: True for name, wanted in asked.items() if wanted}
    given = {name: value for name, value in farms.items() if value is not None}
    if sampling is Sampling.whole:
        if given:
            raise InvalidParameterError(
                f"--farms-{next(iter(given))} belongs to --sampling farms; give both or neither"
            )
        return asked
    from alphalloc.spectra import FarmsSettings

    try:
        return {**asked, "sampling": "farms", "farms": FarmsSettings(**given)}  # type: ignore[arg-type]
    except ValueError as exc:
        raise InvalidParameterError(str(exc)) from exc


def estimator_names(text: str, estimator: str | None, outputs: Mapping[str, Path | None]) -> list[str]:
    """Return the names that ``--estimators`` asks for. Raises InvalidParameterError or UnknownEstimatorError."""
    from alphalloc.cli.options import check_estimator
    from alphalloc.fits import FITS

    if estimator is not None:
        raise InvalidParameterError("--estimators compares several, --estimator and --paper name one; drop one of them")
    for option, path in outputs.items():
        if path is not None:
            raise InvalidParameterError(f"--estimators writes no documents; give {option} with one --estimator")
    return list(FITS) if text == "all" else [check_estimator(name.strip()) for name in text.split(",")]


def trust_table(alphas: ModelAlphas) -> Table:
    """Return one row a layer: alpha, the mean band of its matrices, spikes, and how many p-values rule the tail out."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("layer", "alpha", "band", "widest", "spikes", "p < 0.1", "softrank", "from noise"):
        table.add_column(name, justify="right", no_wrap=True)
    blocks: dict[tuple[str, int], list[MatrixAlpha]] = {}
    for matrix in alphas.matrices:
        blocks.setdefault((matrix.stack, matrix.layer), []).append(matrix)
    for layer in alphas.layers:
        cells = _trust_cells(blocks[layer.stack, layer.layer])
        name = f"{plain(layer.stack)} {layer.layer}".strip()
        table.add_row(name, "-" if layer.alpha is None else f"{layer.alpha:.3f}", *cells)
    for column in [column for column in table.columns if set(column.cells) <= {"-"}]:
        table.columns.remove(column)
    return table


def _trust_cells(matrices: Sequence[MatrixAlpha]) -> list[str]:
    bands = [(m.alpha_low, m.alpha_high) for m in matrices if m.alpha_low is not None and m.alpha_high is not None]
    spikes = [m.num_spikes for m in matrices if m.num_spikes is not None]
    p_values = [m.gof_p_value for m in matrices if m.gof_p_value is not None]
    ranks = [m.mp_softrank for m in matrices if m.mp_softrank is not None]
    distances = [m.rand_distance for m in matrices if m.rand_distance is not None]
    low, high = (fmean(values) for values in zip(*bands, strict=True)) if bands else (0.0, 0.0)
    return [
        f"{low:.3f}-{high:.3f}" if bands else "-",
        f"{max(high - low for low, high in bands):.3f}" if bands else "-",
        f"{fmean(spikes):.0f}" if spikes else "-",
        f"{sum(p < REJECTED for p in p_values)}/{len(p_values)}" if p_values else "-",
        f"{fmean(ranks):.3f}" if ranks else "-",
        f"{fmean(distances):.3f}" if distances else "-",
    ]


def print_estimators(views: Sequence[EstimatorView], *, as_json: bool) -> None:
    """Print the comparison as a table, or as JSON."""
    if as_json:
        from alphalloc.documents import pretty_json

        output.print_json(pretty_json(estimators_document(views)))
        return
    render.print_table(lambda _: estimators_table(views))
    render.closing_notes([f"{view.estimator}: {view.problem}" for view in views if view.problem], [])


def estimators_table(views: Sequence[EstimatorView]) -> Table:
    """Return one row a layer and, for every estimator, its layer mean and the experts its schedule gives."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", justify="right", no_wrap=True)
    for view in views:
        table.add_column(plain(view.estimator), justify="right")
    for position, layer in enumerate(views[0].alphas.layers):
        cells = [_estimator_cell(view, position) for view in views]
        table.add_row(f"{plain(layer.stack)} {layer.layer}".strip(), *cells)
    return table


def estimators_document(views: Sequence[EstimatorView]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        view.estimator: {
            "layers": [
                {"layer": layer.layer, "stack": layer.stack, "alpha": layer.alpha} for layer in view.alphas.layers
            ],
            "num_experts": None if view.schedule is None else list(view.schedule.num_experts),
            "problem": view.problem,
        }
        for view in views
    }


def _estimator_cell(view: EstimatorView, position: int) -> str:
    alpha = view.alphas.layers[position].alpha
    experts = "-" if view.schedule is None else str(view.schedule.num_experts[position])
    return f"{'-' if alpha is None else format(alpha, '.3f')} {experts:>3}"
