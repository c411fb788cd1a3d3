"""From layer scores to weights: how unequal a schedule is.

A rule returns one positive weight a layer, of any scale; a rounding turns weights and a total into experts.

- ``alpha_power``: ``w_i = alpha_i ** beta``. A larger alpha is a lighter tail, a less well trained layer, and gets more
  experts. AlphaLoRA (arXiv 2410.10054), beta 2.5, published for the estimator ``xmin_peak_reference``; the shares of
  ``xmin_peak_robust`` are milder for the same beta.
- ``linear``: the scores mapped linearly to [1 - eps, 1 + eps]. AlphaPruning (arXiv 2410.10912), eps 0.3; TempBalance
  (arXiv 2312.00359) has 0.5.
- ``softmax``: ``w_i = exp(score_i / temperature)``; temperature 1 is chosen here.
- ``uniform``: ``w_i = 1``.
- ``explicit:[a,b,...]``: the counts themselves, one a layer; no rounding takes part.
- ``mola_*`` and ``pattern:a,b,c,...``: MoLA's patterns over the depth (arXiv 2402.08562): layer ``i`` of ``L`` has
  weight ``pattern[floor(len(pattern) * i / L)]``. Published for depths that the pattern's length
  divides; the formula for the others is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alphalloc.errors import InvalidParameterError, InvalidScoresError, UnknownRuleError

Weights = tuple[float, ...]

MAX_COUNT = 10**9  # chosen here: experts of one layer that a user may write down


@dataclass(frozen=True)
class Rule:
    """One way from scores to weights.

    ``parameters`` maps each setting to its default; ``weights(scores, **parameters)`` does the work and raises
    InvalidParameterError for a setting out of range. ``uses_scores`` is False for rules that only count layers;
    ``needs_positive`` says that scores must be positive. ``inline`` names the setting that a colon may introduce.
    """

    name: str
    summary: str
    source: str
    uses_scores: bool
    weights: Callable[..., Weights] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs_positive: bool = False
    inline: str | None = None


def alpha_power(scores: Sequence[float], *, beta: float = 2.5) -> Weights:
    """Return ``w_i = alpha_i ** beta``; beta 0 is uniform, a negative beta turns the order round."""
    power = _number("beta", beta)
    try:
        weights = tuple(score**power for score in scores)
    except OverflowError:
        weights = (math.inf,)
    if not all(0 < weight < math.inf for weight in weights) or math.isinf(sum(weights)):
        raise InvalidParameterError(
            f"alpha ** beta leaves the range of numbers with beta {beta} and scores from {min(scores)} to "
            f"{max(scores)}: use a beta nearer to 0 (published: 2 to 4)"
        )
    return weights


def linear(scores: Sequence[float], *, eps: float = 0.3) -> Weights:
    """Return ``w_i = 1 - eps + 2 eps (score_i - min) / (max - min)``; 1 everywhere when all scores are equal."""
    half_width = _number("eps", eps)
    if not 0 < half_width < 1:
        raise InvalidParameterError(f"eps must lie between 0 and 1, found {eps!r}")
    least, span = min(scores), max(scores) - min(scores)
    if span == 0 or not math.isfinite(span):
        return (1.0,) * len(scores)
    return tuple(1 - half_width + 2 * half_width * ((score - least) / span) for score in scores)


def softmax(scores: Sequence[float], *, temperature: float = 1.0) -> Weights:
    """Return ``w_i = exp((score_i - max) / temperature)``, which has the proportions of ``exp(score_i /
    temperature)``."""
    scale = _number("temperature", temperature)
    if scale <= 0:
        raise InvalidParameterError(f"temperature must be positive, found {temperature!r}")
    weights = tuple(math.exp(max((score - max(scores)) / scale, -1e6)) for score in scores)
    if min(weights) <= 0:
        raise InvalidParameterError(
            f"the softmax of scores from {min(scores)} to {max(scores)} vanishes at temperature {temperature}: raise it"
        )
    return weights


def explicit(scores: Sequence[float], *, counts: Sequence[int]) -> Weights:
    """Return the counts as they are, one a layer of ``scores``."""
    if isinstance(counts, str) or not isinstance(counts, Sequence):
        raise InvalidParameterError(f"counts must be a list of whole numbers, found {counts!r}")
    if len(counts) != len(scores):
        raise InvalidParameterError(f"{len(counts)} explicit counts do not fit {len(scores)} layers: give one a layer")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_COUNT:
            shown = f"{count!r:.40}" if not isinstance(count, int) or abs(count) < 10**30 else "a larger one"
            raise InvalidParameterError(f"explicit counts must be whole numbers from 0 to {MAX_COUNT}, found {shown}")
    return tuple(float(count) for count in counts)


def uniform(scores: Sequence[float]) -> Weights:
    """Return ``w_i = 1``."""
    return (1.0,) * len(scores)


def depth_pattern(scores: Sequence[float], *, pattern: Sequence[float]) -> Weights:
    """Return ``w_i = pattern[floor(len(pattern) * i / L)]`` for the ``L`` layers of ``scores``."""
    if isinstance(pattern, str) or not isinstance(pattern, Sequence) or not pattern:
        raise InvalidParameterError(
            f"pattern must be a list of positive numbers such as [8, 6, 4, 2], found {pattern!r}"
        )
    values = [_number("pattern", value) for value in pattern]
    if min(values) <= 0:
        raise InvalidParameterError(f"pattern must hold positive numbers only, found {list(pattern)}")
    depth = len(scores)
    if len(values) > depth:
        raise InvalidParameterError(f"a pattern of {len(values)} numbers does not fit {depth} layers: shorten it")
    return tuple(values[len(values) * layer // depth] for layer in range(depth))


def _mola(name: str, pattern: tuple[int, ...]) -> Rule:
    digits = "".join(str(number) for number in pattern)

    def weights(scores: Sequence[float]) -> Weights:
        return depth_pattern(scores, pattern=pattern)

    return Rule(
        name=f"mola_{name}",
        summary=f"MoLA's pattern {digits} over the four quarters of the depth, scaled to the budget",
        source="arXiv 2402.08562, section 4.2",
        uses_scores=False,
        weights=weights,
    )


_ALL = (
    Rule(
        name="alpha_power",
        summary="weights alpha ** beta: the layers with the lightest tails get the most experts",
        source="AlphaLoRA, arXiv 2410.10054",
        uses_scores=True,
        weights=alpha_power,
        parameters={"beta": 2.5},
        needs_positive=True,
    ),
    Rule(
        name="linear",
        summary="scores mapped linearly to weights from 1 - eps to 1 + eps",
        source="AlphaPruning, arXiv 2410.10912; TempBalance, arXiv 2312.00359",
        uses_scores=True,
        weights=linear,
        parameters={"eps": 0.3},
    ),
    Rule(
        name="softmax",
        summary="weights exp(score / temperature)",
        source="chosen here",
        uses_scores=True,
        weights=softmax,
        parameters={"temperature": 1.0},
    ),
    Rule(
        name="uniform",
        summary="the same number of experts in every layer",
        source="baseline",
        uses_scores=False,
        weights=uniform,
    ),
    _mola("triangle", (8, 6, 4, 2)),
    _mola("inverted_triangle", (2, 4, 6, 8)),
    _mola("hourglass", (8, 2, 2, 8)),
    _mola("diamond", (2, 8, 8, 2)),
    _mola("rectangle", (5, 5, 5, 5)),
    Rule(
        name="pattern",
        summary="a pattern of any length over the depth, as in 'pattern:8,6,4,2'",
        source="after MoLA, arXiv 2402.08562",
        uses_scores=False,
        weights=depth_pattern,
        parameters={"pattern": None},
        inline="pattern",
    ),
    Rule(
        name="explicit",
        summary="the counts as given, one a layer, as in 'explicit:[5,5,3]'",
        source="by hand",
        uses_scores=False,
        weights=explicit,
        parameters={"counts": None},
        inline="counts",
    ),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}


def parse_rule(text: str) -> tuple[Rule, dict[str, Any]]:
    """Return the rule named by ``text`` and the settings written into it: ``"pattern:8,6,4,2"`` or a plain name.

    Raises UnknownRuleError with the list of names, InvalidParameterError when what follows the colon is malformed.
    """
    name, colon, rest = text.partition(":") if isinstance(text, str) else (repr(text), "", "")
    if name not in RULES:
        raise UnknownRuleError(f"no allocation rule is called {name!r}; there are: {', '.join(RULES)}")
    rule = RULES[name]
    if not colon:
        return rule, {}
    if rule.inline is None:
        raise InvalidParameterError(f"rule {name!r} takes nothing after a colon, found {text!r}")
    return rule, {rule.inline: _numbers(name, rest)}


def rule_settings(rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule's defaults overlaid with ``given``; InvalidParameterError for a setting that it does not have."""
    unknown = sorted(set(given) - set(rule.parameters))
    if unknown:
        known = ", ".join(rule.parameters) or "none"
        raise InvalidParameterError(f"rule {rule.name!r} has no setting {unknown[0]!r}; its settings: {known}")
    settings = {**rule.parameters, **given}
    missing = [name for name, default in rule.parameters.items() if default is None and settings[name] is None]
    if missing:
        raise InvalidParameterError(f"rule {rule.name!r} needs {missing[0]}, as in '{rule.name}:8,6,4,2'")
    return settings


def checked_scores(scores: Sequence[float], *, what: str = "alpha", positive: bool = True) -> Weights:
    """Return ``scores`` as a tuple of floats.

    Raises InvalidScoresError when empty, NaN or infinite and, where ``positive``, when zero or negative.
    """
    if (
        isinstance(scores, (str, bytes, Mapping))
        or not hasattr(scores, "__len__")
        or not hasattr(scores, "__getitem__")
    ):
        raise InvalidScoresError(f"expected a list of numbers, one {what} a layer, found {type(scores).__name__}")
    if len(scores) == 0:
        raise InvalidScoresError(f"expected one {what} a layer, found an empty list")
    return tuple(_score(layer, scores[layer], what, positive) for layer in range(len(scores)))


def _score(layer: int, value: Any, what: str, positive: bool) -> float:
    number = _as_float(value)
    if number is None or not math.isfinite(number) or (positive and number <= 0):
        kind = "positive finite" if positive else "finite"
        raise InvalidScoresError(
            f"layer {layer}: {what} must be a {kind} number, found {value!r}; "
            "leave the layer out or give it the mean of its neighbours"
        )
    return number


def _number(name: str, value: Any) -> float:
    number = _as_float(value)
    if number is None or not math.isfinite(number):
        raise InvalidParameterError(f"{name} must be a finite number, found {value!r}")
    return number


def _as_float(value: Any) -> float | None:
    """Return a real number as float; None for booleans, text, arrays and everything else."""
    if type(value) is float:  # nearly always
        return value
    if isinstance(value, bool) or not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _numbers(name: str, text: str) -> list[float]:
    parts = [part.strip() for part in text.strip().strip("[]").split(",")]
    try:
        return [int(part) if part.lstrip("-").isdigit() else float(part) for part in parts]
    except ValueError as exc:
        raise InvalidParameterError(
            f"'{name}:' must be followed by numbers, as in '{name}:8,6,4,2', found {text!r}"
        ) from exc
