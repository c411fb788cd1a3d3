"""The experts' load as a picture: every layer's experts at the last logged step, and each layer's entropy over time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphalloc.errors import MissingExtraError, TrainingError


def draw_routing(run: Path, target: Path | None = None) -> Path | None:
    """Draw ``routing.jsonl`` of a run folder to ``target`` (default ``routing.svg`` in it; ``.png`` works too).

    Left: load of each expert, a layer a row, averaged over the layer's linears, as a multiple of the fair share 1/E.
    Right: the layers' load entropy at every logged step; 1 is balanced. Returns None when nothing was routed. Raises
    MissingExtraError without matplotlib, TrainingError when the file is not what a run writes.
    """
    lines = _lines(run / "routing.jsonl")
    if not lines:
        return None
    try:
        import matplotlib
    except ImportError as exc:
        raise MissingExtraError("pictures need matplotlib: pip install 'alphalloc[train]'") from exc
    path = run / "routing.svg" if target is None else target
    # Text stays text, and the same run gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alphalloc"}):
        _figure(lines).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _figure(lines: Sequence[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys((line["stack"], line["layer"]) for line in lines))
    figure = Figure(figsize=(11, 1.6 + 0.16 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _loads(left, [line for line in lines if line["step"] == lines[-1]["step"]], layers)
    _entropies(right, lines, layers)
    for axes, cells, label in (
        (left, left.images[0], "load of an expert / fair share"),
        (right, right.images[0], "entropy of the load / log E"),
    ):
        axes.set_ylabel("layer")
        figure.colorbar(cells, ax=axes, label=label)
    return figure


def _loads(axes: Any, lines: Sequence[dict[str, Any]], layers: Sequence[tuple[str, int]]) -> None:
    most = max(line["num_experts"] for line in lines)
    cells = []
    for layer in layers:
        members = [line for line in lines if (line["stack"], line["layer"]) == layer]
        row = []
        for expert in range(most):
            loads = [line["load"][expert] * line["num_experts"] for line in members if expert < line["num_experts"]]
            row.append(sum(loads) / len(loads) if loads else float("nan"))
        cells.append(row)
    axes.imshow(cells, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_xlabel("expert")
    axes.set_title(f"load at step {lines[0]['step']}")


def _entropies(axes: Any, lines: Sequence[dict[str, Any]], layers: Sequence[tuple[str, int]]) -> None:
    steps = sorted({line["step"] for line in lines})
    sums: dict[tuple[Any, int], list[float]] = {}
    for line in lines:
        sums.setdefault(((line["stack"], line["layer"]), line["step"]), []).append(line["entropy"])
    cells = [[sum(v) / len(v) if (v := sums.get((layer, s))) else float("nan") for s in steps] for layer in layers]
    axes.imshow(cells, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    places = sorted({0, len(steps) // 2, len(steps) - 1})
    axes.set_xticks(places, [str(steps[place]) for place in places])
    axes.set_xlabel("step")
    axes.set_title("how evenly the experts are used")


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["load"] and line["entropy"] is not None and line["step"] is not None]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise TrainingError(f"{path}: expected the routing lines of a run: {exc}") from exc
