"""What the charts of a training's report show: loss, accuracy, the experts' load, entropy and likeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeVar

from alphalloc.report.charts import Chart, HeatMap, Numbers, Series, colour, number
from alphalloc.report.model_charts import label
from alphalloc.report.similarity import Alike
from alphalloc.report.training_files import Arm, RoutingLine, Run

T = TypeVar("T")

MAX_POINTS = 400  # of a line; chosen here: more than a picture has pixels to show
MAX_STEPS = 60  # columns of a map over time


def loss(runs: Sequence[tuple[str, Run]]) -> Chart | None:
    """Return the training loss by step, a line a run (named as given), and the evaluations' loss; None without any."""
    series = []
    names = list(dict.fromkeys(name for name, _ in runs))
    for name, run in runs:
        hue = colour(names.index(name))
        if "loss" in run.series:
            series.append(_line(f"{name}, training" if len(runs) == 1 else name, *run.series["loss"], hue))
        if "eval_loss" in run.series:
            series.append(_line(f"{name}, evaluation", *run.series["eval_loss"], hue, dashed=True))
    if not series:
        return None
    ends = "; ".join(f"{one.name}: {number(one.y[0])} to {number(one.y[-1])}" for one in series[:8])
    return Chart("loss", "Loss", f"Loss by step. {ends}.", "step", "loss", tuple(series))


def accuracy(arms: Sequence[Arm], untrained: float | None = None) -> Chart:
    """Return each arm's mean accuracy with its interval over seeds, and every seed as a point of its own."""
    seeds = max(len(arm.seeds) for arm in arms)
    single = [
        Series(
            f"seed {arms[0].seeds[i].seed}" if i < len(arms[0].seeds) else f"training {i + 1}",
            tuple(arm.seeds[i].accuracy if i < len(arm.seeds) else None for arm in arms),
            kind="points",
            colour=colour(i + 1),
        )
        for i in range(seeds)
    ]
    alone = seeds == 1  # then the interval is that of the test examples
    bounds = [(arm.seeds[0].low, arm.seeds[0].high) if alone else arm.interval for arm in arms]
    mean = Series(
        "mean",
        tuple(arm.accuracy_mean for arm in arms),
        kind="bars",
        low=tuple(None if bound is None else bound[0] for bound in bounds),
        high=tuple(None if bound is None else bound[1] for bound in bounds),
        note="95 % over test examples" if alone else "95 % over seeds",
    )
    extra: tuple[Series, ...] = ()
    if untrained is not None:
        extra = (Series("without an adapter", (untrained,) * len(arms), colour=colour(6), dashed=True),)
    best = max(arms, key=lambda arm: arm.accuracy_mean)
    return Chart(
        key="accuracy",
        title="Accuracy",
        summary=f"{best.name} has the highest mean accuracy, {best.accuracy_mean:.3f}.",
        x_title="arm",
        y_title="accuracy on the test",
        series=(mean, *(single if seeds > 1 else ()), *extra),
        labels=tuple(arm.name for arm in arms),
        from_zero=True,
    )


def experts_by_arm(arms: Sequence[Arm]) -> Chart | None:
    """Return the experts of each layer, a line an arm; None where no arm has any."""
    lines = [
        Series(
            arm.name,
            tuple(map(float, arm.num_experts)),
            tuple(map(float, range(len(arm.num_experts)))),
            colour=colour(i),
        )
        for i, arm in enumerate(arms)
        if arm.num_experts
    ]
    if not lines:
        return None
    words = "; ".join(f"{one.name}: {number(sum(v or 0 for v in one.y))} in all" for one in lines)
    return Chart(
        "arms", "Experts by layer", f"Experts by layer. {words}.", "layer", "experts", tuple(lines), from_zero=True
    )


def entropy(routing: Sequence[RoutingLine]) -> HeatMap | None:
    """Return the entropy of the load by layer over the steps, as a share of its most: 1 is balanced."""
    return _over_time(
        routing,
        lambda line: line.entropy,
        "entropy",
        "Entropy of the experts' load",
        "entropy / log E",
        "balanced is 1",
    )


def heaviest(routing: Sequence[RoutingLine]) -> HeatMap | None:
    """Return by layer over the steps how far the most used expert is above its fair share 1/E."""
    return _over_time(
        routing,
        lambda line: max(line.load, default=0.0) * line.num_experts,
        "heaviest",
        "The most used expert",
        "load · E",
        "its fair share is 1",
    )


def load(routing: Sequence[RoutingLine]) -> HeatMap | None:
    """Return each expert's load at the last logged step as a multiple of its fair share, a row a layer."""
    last = [line for line in _routed(routing) if line.step == routing[-1].step] if routing else []
    if not last:
        return None
    places = _places(last)
    most = max(line.num_experts for line in last)
    rows = []
    for place in places:
        of = [line for line in last if (line.stack, line.layer) == place]
        row: list[float | None] = []
        for expert in range(most):
            shares = [
                line.load[expert] * line.num_experts for line in of if expert < min(line.num_experts, len(line.load))
            ]
            row.append(fmean(shares) if shares else None)
        rows.append(tuple(row))
    dead = sum(len(line.dead) for line in last)
    return HeatMap(
        key="load",
        title="Load of each expert",
        summary=f"At step {last[0].step}, mean over each layer's linears; {dead} experts of all linears are dead.",
        x_title="expert",
        y_title="layer",
        x_labels=tuple(map(str, range(most))),
        y_labels=_labels(places),
        values=tuple(rows),
        value_title="load · E",
    )


def similarity(alike: Sequence[Alike], routing: Sequence[RoutingLine]) -> HeatMap | None:
    """Return the mean cosine between the experts of each linear: a column a layer, a row a role."""
    where = {line.module: line for line in routing}
    known = [(where[one.module], one) for one in alike if one.module in where and one.mean is not None]
    if not known:
        return None
    places = _places([line for line, _ in known])
    roles = list(dict.fromkeys(line.role for line, _ in known))
    cells = {(line.role, line.stack, line.layer): one.mean for line, one in known}
    means = [one.mean for _, one in known if one.mean is not None]
    return HeatMap(
        key="similarity",
        title="Similarity between experts",
        summary=f"Cosine between the updates of a linear's experts: {fmean(means):.3f} on average.",
        x_title="layer",
        y_title="role",
        x_labels=_labels(places),
        y_labels=tuple(roles),
        values=tuple(tuple(cells.get((role, *place)) for place in places) for role in roles),
        value_title="cosine",
    )


def _over_time(
    routing: Sequence[RoutingLine],
    value: Callable[[RoutingLine], float],
    key: str,
    title: str,
    value_title: str,
    scale: str,
) -> HeatMap | None:
    lines = _routed(routing)
    if not lines:
        return None
    steps = _thinned(list(dict.fromkeys(line.step for line in lines)), MAX_STEPS)
    places = _places(lines)
    cells: dict[tuple[int, str, int | None], list[float]] = {}
    for line in lines:
        cells.setdefault((line.step, line.stack, line.layer), []).append(value(line))
    values = tuple(
        tuple(fmean(of) if (of := cells.get((step, *place))) else None for step in steps) for place in places
    )
    at_end = [row[-1] for row in values if row[-1] is not None]
    words = f"Mean over each layer's linears; {scale}."
    if at_end:
        words += f" At step {steps[-1]} from {min(at_end):.3f} to {max(at_end):.3f}."
    return HeatMap(
        key, title, words, "step", "layer", tuple(map(str, steps)), _labels(places), values, value_title
    )  # fmt: skip


def _routed(routing: Sequence[RoutingLine]) -> list[RoutingLine]:
    """Lines of linears that have something to route: more than one expert, in a layer."""
    return [line for line in routing if line.num_experts > 1 and line.layer is not None]


def _places(lines: Sequence[RoutingLine]) -> list[tuple[str, int | None]]:
    return sorted({(line.stack, line.layer) for line in lines}, key=lambda place: (place[0], place[1] or 0))


def _labels(places: Sequence[tuple[str, int | None]]) -> tuple[str, ...]:
    several = len({stack for stack, _ in places}) > 1
    return tuple(label(stack if several else "", layer or 0) for stack, layer in places)


def _line(name: str, steps: Sequence[float], values: Sequence[float], hue: str, *, dashed: bool = False) -> Series:
    pairs = _thinned(list(zip(steps, values, strict=True)), MAX_POINTS)
    y: Numbers = tuple(value for _, value in pairs)
    return Series(name, y, tuple(step for step, _ in pairs), colour=hue, dashed=dashed, dots=len(pairs) <= 40)


def _thinned(items: list[T], most: int) -> list[T]:
    """At most ``most`` of the items, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
