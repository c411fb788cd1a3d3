"""A report's findings in sentences: what someone would say who had looked at the charts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import LayerAlpha, ModelAlphas
from alphalloc.report.charts import number
from alphalloc.report.model_charts import label, roles, schedule_names

REJECTED = 0.1  # Clauset et al. (arXiv 0706.1062) rule a power law out below this p-value


def summary(alphas: ModelAlphas, schedules: Sequence[ExpertSchedule]) -> tuple[str, ...]:
    """Return the sentences at the head of a report: layers, roles, trust, schedules."""
    found = [_extremes(alphas), _halves(alphas), _by_role(alphas), _bands(alphas), _tails(alphas), _missing(alphas)]
    names = schedule_names(schedules)
    found += [_schedule(schedule, name) for schedule, name in zip(schedules, names, strict=True)]
    found += [_difference(schedules, names)]
    return tuple(sentence for sentence in found if sentence)


def facts(alphas: ModelAlphas) -> tuple[tuple[str, str], ...]:
    """Return the few numbers that a reader wants first, as (what, how much)."""
    totals = alphas.summary()
    found = [
        ("layers", str(totals["num_layers"])),
        ("matrices fitted", f"{totals['num_valid']} of {totals['num_matrices']}"),
        ("mean alpha", number(totals["mean_alpha"])),
        ("smallest", number(totals["min_alpha"])),
        ("largest", number(totals["max_alpha"])),
    ]
    return tuple(found)


def _extremes(alphas: ModelAlphas) -> str:
    known = [layer for layer in alphas.layers if layer.alpha is not None]
    if not known:
        return "No layer has an alpha."
    most = max(known, key=_alpha)
    least = min(known, key=_alpha)
    if len(known) == 1:
        return f"The one layer has alpha {_alpha(most):.3f}."
    return (
        f"Layer {_name(most)} has the largest alpha ({_alpha(most):.3f}): by this measure the least well trained; "
        f"layer {_name(least)} has the smallest ({_alpha(least):.3f})."
    )


def _halves(alphas: ModelAlphas) -> str:
    known = [layer.alpha for layer in alphas.layers if layer.alpha is not None]
    if len(known) < 4 or len({layer.stack for layer in alphas.layers}) > 1:
        return ""
    middle = len(known) // 2
    first, second = fmean(known[:middle]), fmean(known[middle:])
    spread = max(known) - min(known)
    if spread == 0 or abs(first - second) < 0.1 * spread:
        return f"The two halves of the depth differ little: mean alpha {first:.3f} and {second:.3f}."
    more, larger, smaller = ("first", first, second) if first > second else ("second", second, first)
    return f"The {more} half of the depth has the larger alphas: {larger:.3f} against {smaller:.3f} on average."


def _by_role(alphas: ModelAlphas) -> str:
    means = {
        role: fmean(known)
        for role in roles(alphas)
        if (known := [value for layer in alphas.layers if (value := layer.roles.get(role)) is not None])
    }
    if len(means) < 2:
        return ""
    most, least = max(means, key=lambda role: means[role]), min(means, key=lambda role: means[role])
    return (
        f"By role, {most} has the largest mean alpha ({means[most]:.3f}) and {least} the smallest ({means[least]:.3f})."
    )


def _bands(alphas: ModelAlphas) -> str:
    widths = [
        (m.stability_band[1] - m.stability_band[0]) / m.alpha
        for m in alphas.matrices
        if m.stability_band is not None and m.alpha is not None
    ]
    if not widths:
        return ""
    return (
        f"Under small noise and rounding the alpha of a typical matrix moves within a band of {median(widths):.1%} "
        f"of its value; the widest band is {max(widths):.1%}."
    )


def _tails(alphas: ModelAlphas) -> str:
    p_values = [m.gof_p_value for m in alphas.matrices if m.gof_p_value is not None]
    if not p_values:
        return ""
    passed = sum(p >= REJECTED for p in p_values)
    return (
        f"{passed} of {len(p_values)} tails pass for a power law (p at least {REJECTED:g}); of the others alpha is a "
        "slope that ranks layers, not a law."
    )


def _missing(alphas: ModelAlphas) -> str:
    without = [matrix for matrix in alphas.matrices if matrix.alpha is None]
    unexpected = sum(not tensor.by_design for tensor in alphas.skipped)
    parts = []
    if without:
        parts.append(f"{_count(len(without), 'matrix has', 'matrices have')} no alpha (the first: {without[0].name})")
    if unexpected:
        parts.append(f"{_count(unexpected, 'tensor was', 'tensors were')} left out that one would expect")
    return f"{' and '.join(parts)}." if parts else ""


def _schedule(schedule: ExpertSchedule, name: str) -> str:
    counts = schedule.num_experts
    most = [label(layer.stack, layer.layer) for layer in schedule.layers if layer.num_experts == max(counts)]
    text = f"{name}: {min(counts)} to {max(counts)} a layer"
    if max(counts) > min(counts):
        text += f", the most at {_listed(most)}"
    if schedule.confidence is not None:
        widest = max((one.high - one.low for one in schedule.confidence.ranges), default=0)
        text += (
            f"; drawn anew within the estimator's own error, {schedule.confidence.changed:.0%} of "
            f"{schedule.confidence.draws} schedules differ somewhere, and a layer's range is at most {widest} wide"
        )
    return text + "."


def _difference(schedules: Sequence[ExpertSchedule], names: Sequence[str]) -> str:
    if len(schedules) != 2 or len(schedules[0].layers) != len(schedules[1].layers):
        return ""
    pairs = zip(schedules[0].num_experts, schedules[1].num_experts, strict=True)
    moved = sum(abs(a - b) for a, b in pairs)
    if moved == 0:
        return f"{names[0]} and {names[1]} give every layer the same."
    return f"Between {names[0]} and {names[1]} the experts of the layers differ by {moved} in sum."


def _alpha(layer: LayerAlpha) -> float:
    assert layer.alpha is not None
    return layer.alpha


def _name(layer: LayerAlpha) -> str:
    return label(layer.stack, layer.layer)


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"layer{'s' if len(names) > 1 else ''} {', '.join(shown)}{more}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
