"""The report of a training: a run's folder, or a comparison of several, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphalloc.report import figures, html, provenance, training_charts
from alphalloc.report.charts import AnyChart, number
from alphalloc.report.similarity import expert_similarity
from alphalloc.report.tables import Table, to_html
from alphalloc.report.training_files import (
    Arm,
    ComparisonDocument,
    Run,
    is_comparison,
    read_comparison,
    read_run,
)

MAX_RUNS = 24  # whose loss is drawn; chosen here: eight arms of three seeds


def training_html(folder: Path, *, light: bool = False) -> str:
    """Return the report of the run or comparison in ``folder`` as one HTML document that loads nothing.

    Of a run: loss, the experts' load and entropy by layer over time, how alike the experts of its adapter are. Of a
    comparison: accuracy with intervals, paired differences, the losses of its runs. ``light`` as in ``report_html``.

    Raises DocumentError when the folder holds neither, MissingExtraError without plotly unless ``light``.
    """
    if is_comparison(folder):
        return _comparison_html(folder, read_comparison(folder), light=light)
    return _run_html(folder, read_run(folder), light=light)


def _run_html(folder: Path, run: Run, *, light: bool) -> str:
    shown = _known(training_charts.loss([(folder.name, run)]), *routing_charts(run))
    recipe = run.card.get("recipe") or {}
    adapter = recipe.get("adapter") or {}
    result = run.card.get("result") or {}
    evaluation = result.get("eval") or {}  # after the last step
    facts = _pairs(
        ("status", run.card.get("status")),
        ("adapter", adapter.get("method")),
        ("trainable parameters", (run.card.get("parameters") or {}).get("trainable")),
        ("steps", result.get("steps")),
        ("train loss", result.get("train_loss")),
        ("eval loss", evaluation.get("eval_loss")),
        ("seconds", result.get("seconds")),
        ("peak memory, MB", round(result["peak_memory"] / 1e6) if isinstance(result.get("peak_memory"), int) else None),
    )
    origin = _pairs(
        ("model", (run.card.get("model") or {}).get("id")),
        ("schedule", result.get("schedule_id")),
        ("rank", adapter.get("r")),
        ("seed", (recipe.get("run") or {}).get("seed", recipe.get("seed"))),
        *((run.card.get("versions") or {}).items()),
        ("commit", run.card.get("commit")),
    )
    title = f"Training of {(run.card.get('model') or {}).get('id') or folder.name}"
    summary = html.section("summary", "Summary", html.definitions(facts, "facts"), _sentence(shown))
    return _page(title, "A training run", summary, shown, origin, folder, light=light)


def routing_charts(run: Run) -> tuple[AnyChart | None, ...]:
    """Return entropy, heaviest expert and last load by layer, and the similarity of experts, as far as known."""
    counts = {line.module: line.num_experts for line in run.routing}
    alike = expert_similarity(run.folder / "adapter", counts) if run.routing else ()
    return (
        training_charts.entropy(run.routing),
        training_charts.heaviest(run.routing),
        training_charts.load(run.routing),
        training_charts.similarity(alike, run.routing),
    )


def _comparison_html(folder: Path, found: ComparisonDocument, *, light: bool) -> str:
    untrained = (found.untrained or {}).get("accuracy")
    shown: list[AnyChart] = [
        training_charts.accuracy(found.arms, untrained if isinstance(untrained, int | float) else None)
    ]
    shown += _known(training_charts.experts_by_arm(found.arms), training_charts.loss(_runs(folder, found.arms)))
    facts = _pairs(
        ("arms", len(found.arms)),
        ("seeds an arm", len(found.arms[0].seeds)),
        ("test examples", found.arms[0].seeds[0].total if found.arms[0].seeds else None),
        ("steps", found.steps),
    )
    notes = html.bullets(found.notes, "notes")
    body = html.definitions(facts, "facts") + html.bullets(_findings(found), "findings") + notes
    summary = html.section("summary", "Summary", body)
    tables = html.section("numbers", "In numbers", to_html(_arm_table(found.arms)) + to_html(_pair_table(found)))
    origin = _pairs(("task", found.task), ("model", found.model))
    return _page(found.task, "A comparison of schedules", summary, shown, origin, folder, light=light, extra=tables)


def _page(
    title: str,
    kind: str,
    summary: str,
    shown: Sequence[AnyChart],
    origin: tuple[tuple[str, str], ...],
    folder: Path,
    *,
    light: bool,
    extra: str = "",
) -> str:
    sections = [("summary", "Summary", summary)]
    sections += [(chart.key, chart.title, html.chart_section(chart, live=not light)) for chart in shown]
    sections += [("numbers", "Numbers", extra)] if extra else []
    command = provenance.report_command([str(folder)], light=light)
    again = html.made_again([command])
    sections.append(
        (
            "origin",
            "Origin",
            html.section("origin", "Where this comes from", html.definitions(origin, "origin") + again),
        )
    )
    data: dict[str, Any] = {"figures": {chart.key: figures.specification(chart) for chart in shown}, "spectra": {}}
    return html.document(title, kind, sections, None if light else data)


def _runs(folder: Path, arms: Sequence[Arm]) -> list[tuple[str, Run]]:
    """The runs of the arms that are still in the comparison's folder, each under its arm's name."""
    found: list[tuple[str, Run]] = []
    for arm in arms:
        for seed in arm.seeds:
            place = folder / seed.folder
            inside = folder.resolve() in place.resolve().parents
            if inside and (place / "card.json").is_file() and len(found) < MAX_RUNS:
                found.append((arm.name, read_run(place)))
    return found


def _findings(found: ComparisonDocument) -> list[str]:
    sentences = []
    for pair in found.paired:  # told apart: other seeds would say the same, and other examples too
        intervals = [bounds for bounds in (pair.interval, pair.question_interval) if bounds is not None]
        apart = len(intervals) == 2 and all(low > 0 or high < 0 for low, high in intervals)
        verdict = "both intervals exclude zero" if apart else "not told apart"
        sentences.append(f"{pair.first} minus {pair.second}: {pair.difference:+.3f}; {verdict}.")
    return sentences


def _arm_table(arms: Sequence[Arm]) -> Table:
    rows = tuple(
        (
            arm.name,
            f"{arm.parameters:,}",
            f"{arm.accuracy_mean:.3f}",
            _bounds(arm.interval),
            ", ".join(f"{one.accuracy:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in arm.seeds),
        )
        for arm in arms
    )
    return Table("Arms", ("arm", "parameters", "mean accuracy", "95 % over seeds", "each seed [95 %]"), rows)


def _pair_table(found: ComparisonDocument) -> Table:
    rows = tuple(
        (f"{one.first} - {one.second}", f"{one.difference:+.3f}", _bounds(one.interval), _bounds(one.question_interval))
        for one in found.paired
    )
    return Table("Differences", ("pair", "difference", "95 % over seeds", "95 % over test examples"), rows)


def _bounds(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _known(*charts: AnyChart | None) -> list[AnyChart]:
    return [chart for chart in charts if chart is not None]


def _sentence(shown: Sequence[AnyChart]) -> str:
    return "" if shown else "Nothing was logged in this folder yet."


def _pairs(*given: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names with values that are text or numbers, as text."""
    return tuple((name, _text(value)) for name, value in given if isinstance(value, str | int | float) and value != "")


def _text(value: str | float) -> str:
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value)
