"""What the charts of a model's report show: alphas, roles, experts, spectra, estimators side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import EsdHistogram, LayerAlpha, MatrixAlpha, ModelAlphas
from alphalloc.report.charts import GREY, Chart, HeatMap, Mark, Numbers, Series, colour, number

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as data flows; others after
MIN_PER_BIN = 6  # eigenvalues; chosen here: below, neighbouring bins are merged and the tail is seen better
MAX_BARS = 240  # more bars of an expert chart than this are drawn as lines


def label(stack: str, layer: int) -> str:
    """Return how a layer is called: its index, after its stack where a model has several."""
    return f"{stack}.{layer}" if stack else str(layer)


def labels(alphas: ModelAlphas) -> tuple[str, ...]:
    """Return the name of every layer, in order."""
    return tuple(label(layer.stack, layer.layer) for layer in alphas.layers)


def roles(alphas: ModelAlphas) -> tuple[str, ...]:
    """Return the roles of the model: attention and feed-forward in the order of the data's way, then the others."""
    present = {role for layer in alphas.layers for role in layer.roles}
    return (*(role for role in ROLES if role in present), *sorted(present - set(ROLES)))


def alpha_by_layer(alphas: ModelAlphas) -> Chart:
    """Return alpha by layer: the mean, its mean stability band where there is one, and a point a role."""
    names = roles(alphas)
    points = tuple(
        Series(role, tuple(layer.roles.get(role) for layer in alphas.layers), kind="points", colour=colour(i + 1))
        for i, role in enumerate(names)
    )
    low, high = layer_bands(alphas)
    mean = Series(
        "layer mean", tuple(layer.alpha for layer in alphas.layers), low=low, high=high, note="stability band"
    )
    known = [(layer.alpha, name) for layer, name in zip(alphas.layers, labels(alphas), strict=True) if layer.alpha]
    summary = "No layer has an alpha."
    if known:
        (least, at_least), (most, at_most) = min(known), max(known)
        summary = f"Alpha by layer: from {least:.3f} at layer {at_least} to {most:.3f} at layer {at_most}."
    return Chart(
        key="alpha-by-layer",
        title="Alpha by layer",
        summary=summary,
        x_title="layer",
        y_title="alpha",
        series=(*points, mean),
        labels=labels(alphas),
    )


def layer_bands(alphas: ModelAlphas) -> tuple[Numbers, Numbers]:
    """Return the mean low and high end of each layer's bands; two empty tuples where no matrix has a band."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for matrix in alphas.matrices:
        if matrix.stability_band is not None:
            found.setdefault((matrix.stack, matrix.layer), []).append(matrix.stability_band)
    if not found:
        return (), ()
    bands = [found.get((layer.stack, layer.layer), []) for layer in alphas.layers]
    low = tuple(fmean(band[0] for band in of) if of else None for of in bands)
    return low, tuple(fmean(band[1] for band in of) if of else None for of in bands)


def alpha_by_role(alphas: ModelAlphas) -> HeatMap:
    """Return alpha as a map: a column a layer, a row a role."""
    names = roles(alphas)
    values = tuple(tuple(layer.roles.get(role) for layer in alphas.layers) for role in names)
    means = {
        role: fmean(known)
        for role, row in zip(names, values, strict=True)
        if (known := [value for value in row if value is not None])
    }
    summary = "Alpha of each role in each layer."
    if means:
        least, most = min(means, key=lambda role: means[role]), max(means, key=lambda role: means[role])
        summary = f"Mean alpha is smallest for {least} ({means[least]:.3f}) and largest for {most} ({means[most]:.3f})."
    return HeatMap(
        key="alpha-by-role",
        title="Alpha by layer and role",
        summary=summary,
        x_title="layer",
        y_title="role",
        x_labels=labels(alphas),
        y_labels=names,
        values=values,
        value_title="alpha",
    )


def experts_by_layer(schedules: Sequence[ExpertSchedule], names: Sequence[str] = ()) -> Chart:
    """Return the experts (or ranks) of each layer, a row of bars a schedule, with its range where it has one.

    ``names`` default to what tells the schedules apart: rule and budget.
    """
    called = tuple(names) or schedule_names(schedules)
    places = list(dict.fromkeys((layer.stack, layer.layer) for schedule in schedules for layer in schedule.layers))
    bars = len(places) * len(schedules) <= MAX_BARS
    unit = _unit(schedules)
    series = []
    for position, (schedule, name) in enumerate(zip(schedules, called, strict=True)):
        ranges = _ranges(schedule)
        amounts = {(layer.stack, layer.layer): _amount(layer, unit) for layer in schedule.layers}
        series.append(
            Series(
                name,
                tuple(amounts.get(place) for place in places),
                kind="bars" if bars else "line",
                low=tuple(ranges[place][0] if place in ranges else None for place in places) if ranges else (),
                high=tuple(ranges[place][1] if place in ranges else None for place in places) if ranges else (),
                note="5 % to 95 % of draws",
                colour=colour(position),
            )
        )
    spread = "; ".join(_spread(one) for one in series)
    return Chart(
        key="experts-by-layer",
        title=f"{unit.capitalize()} by layer",
        summary=f"{unit.capitalize()} by layer. {spread}.",
        x_title="layer",
        y_title=unit,
        series=tuple(series),
        labels=tuple(label(*place) for place in places),
        from_zero=True,
    )


def schedule_names(schedules: Sequence[ExpertSchedule]) -> tuple[str, ...]:
    """Return a short name for each schedule; those that would be called the same get a part of their id."""
    called = [f"{schedule.rule.name}, {schedule.totals.num_experts} experts" for schedule in schedules]
    return tuple(
        f"{name} ({schedule.id[:9]})" if called.count(name) > 1 else name
        for name, schedule in zip(called, schedules, strict=True)
    )


def merged(histogram: EsdHistogram, num_eigs: int, most: int = 64) -> EsdHistogram:
    """Return the histogram with neighbours merged, two by two, until bins hold six eigenvalues on average.

    Also until there are ``most`` of them, where they can be halved that far.
    """
    counts = histogram.counts
    while len(counts) % 2 == 0 and len(counts) > 8 and (num_eigs < MIN_PER_BIN * len(counts) or len(counts) > most):
        counts = tuple(a + b for a, b in zip(counts[::2], counts[1::2], strict=True))
    return EsdHistogram(log10_low=histogram.log10_low, log10_high=histogram.log10_high, counts=counts)


def spectrum(matrix: MatrixAlpha, most: int = 64) -> Chart | None:
    """Return the density of a matrix's eigenvalues, log-log, with the fitted tail; None without a histogram.

    ``most``: of bins. Density of a bin: count / (eigenvalues · width). The tail that was fitted: p(λ) = (tail /
    eigenvalues) · (alpha - 1) / xmin · (λ / xmin)^-alpha from xmin to the largest eigenvalue.
    """
    if matrix.esd_histogram is None:
        return None
    histogram = merged(matrix.esd_histogram, matrix.num_eigs, most)
    total = sum(histogram.counts)
    density = _density(histogram)
    series = [Series("eigenvalues", density, _centres(histogram), dots=True)]
    marks = []
    if matrix.alpha is not None and matrix.alpha > 1 and matrix.xmin is not None and matrix.xmin > 0:
        floor = min((value for value in density if value is not None), default=1.0) / 10
        series.append(_tail(matrix.alpha, math.log10(matrix.xmin), matrix.num_tail / max(total, 1), histogram, floor))
        marks.append(Mark(matrix.xmin, "xmin"))
    if matrix.mp_edge is not None and matrix.mp_edge > 0:
        marks.append(Mark(matrix.mp_edge, "bulk edge of noise"))
    return Chart(
        key="spectrum",
        title=f"Spectrum of {matrix.name}",
        summary=_spectrum_words(matrix),
        x_title="eigenvalue λ of W Wᵀ",
        y_title="density",
        series=tuple(series),
        marks=tuple(marks),
        x_log=True,
        y_log=True,
    )


def estimators(documents: Sequence[ModelAlphas], names: Sequence[str]) -> Chart:
    """Return alpha by layer of several documents of one model, a line each."""
    first = labels(documents[0])
    lines = tuple(
        Series(name, _aligned(document, first), colour=colour(i), dots=len(first) <= 60)
        for i, (document, name) in enumerate(zip(documents, names, strict=True))
    )
    spreads = [
        (max(known) - min(known), layer)
        for layer, values in zip(first, zip(*(line.y for line in lines), strict=True), strict=True)
        if len(known := [value for value in values if value is not None]) > 1
    ]
    summary = "No layer has an alpha in two of the documents."
    if spreads:
        widest, where = max(spreads)
        summary = f"The documents are furthest apart at layer {where}, by {widest:.3f}."
    return Chart(
        key="estimators",
        title="Alpha by layer, document by document",
        summary=summary,
        x_title="layer",
        y_title="alpha",
        series=lines,
        labels=first,
    )


def with_uniform(chart: Chart, schedule: ExpertSchedule) -> Chart:
    """Return the expert chart with a grey line where every layer would have the same share."""
    even = schedule.totals.num_experts / schedule.totals.num_layers
    line = Series("uniform", (even,) * len(chart.labels), colour=GREY, dashed=True)
    return replace(chart, series=(*chart.series, line))


def _aligned(document: ModelAlphas, layers: Sequence[str]) -> Numbers:
    known: dict[str, LayerAlpha] = dict(zip(labels(document), document.layers, strict=True))
    return tuple(known[name].alpha if name in known else None for name in layers)


def _unit(schedules: Sequence[ExpertSchedule]) -> str:
    return "ranks" if all(schedule.budget.unit == "ranks" for schedule in schedules) else "experts"


def _amount(layer: object, unit: str) -> float | None:
    if unit == "experts":
        return getattr(layer, "num_experts", None)
    ranked = [module.rank for module in getattr(layer, "modules", ()) if module.rank is not None]
    return sum(ranked) if ranked else getattr(layer, "rank", None)


def _ranges(schedule: ExpertSchedule) -> dict[tuple[str, int], tuple[int, int]]:
    """The range of each layer's experts, where layers were counted on their own."""
    if schedule.confidence is None or schedule.level != "layer":
        return {}
    return {(one.stack, one.layer): (one.low, one.high) for one in schedule.confidence.ranges}


def _spread(series: Series) -> str:
    known = [value for value in series.y if value is not None]
    if not known:
        return f"{series.name}: none"
    return f"{series.name}: {number(sum(known))} in all, {number(min(known))} to {number(max(known))} a layer"


def _step(histogram: EsdHistogram) -> float:
    return (histogram.log10_high - histogram.log10_low) / len(histogram.counts)


def _centres(histogram: EsdHistogram) -> tuple[float, ...]:
    return tuple(_power(histogram.log10_low + _step(histogram) * (i + 0.5)) for i in range(len(histogram.counts)))


def _density(histogram: EsdHistogram) -> Numbers:
    """Count / (total · width) of every bin, in logarithms on the way: eigenvalues reach to the ends of float64."""
    total, step = sum(histogram.counts), _step(histogram)
    log10_narrower = math.log10(1 - 10**-step) if step < 300 else 0.0  # width = 10^high · (1 - 10^-step)
    values: list[float | None] = []
    for i, count in enumerate(histogram.counts):
        log10_width = histogram.log10_low + step * (i + 1) + log10_narrower
        values.append(_power(math.log10(count / total) - log10_width) if count else None)
    return tuple(values)


def _tail(alpha: float, log10_xmin: float, share: float, histogram: EsdHistogram, floor: float) -> Series:
    """The fitted density from xmin to the largest eigenvalue, or to where it falls below ``floor``."""
    log10_height = math.log10(max(share, 1e-300) * (alpha - 1)) - log10_xmin
    reach = max(min(histogram.log10_high - log10_xmin, (log10_height - math.log10(floor)) / alpha), 0.0)
    x = (_power(log10_xmin), _power(log10_xmin + reach))
    y = (_power(log10_height), _power(log10_height - alpha * reach))
    return Series(f"fitted tail, alpha {alpha:.3f}", y, x, colour=colour(1))


def _power(log10: float) -> float:
    return 10 ** min(max(log10, -300.0), 300.0)


def _spectrum_words(matrix: MatrixAlpha) -> str:
    size = f"{matrix.name}: {matrix.rows} x {matrix.cols}, {matrix.num_eigs} eigenvalues above zero."
    if matrix.alpha is None:
        return f"{size} No alpha: {matrix.reason or matrix.status}."
    tail = (
        f" Alpha {matrix.alpha:.3f} from the {matrix.num_tail} eigenvalues above xmin = {number(matrix.xmin)}"
        f" (KS distance {number(matrix.ks_distance, 3)})."
    )
    spikes = (
        "" if matrix.num_spikes is None else f" {matrix.num_spikes} lie beyond what noise of this shape would reach."
    )
    return size + tail + spikes
