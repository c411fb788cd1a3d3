"""Rules: published patterns, exact weights, bad settings."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest

from alphalloc.allocation import RULES, allocate
from alphalloc.allocation.rules import checked_scores, parse_rule, rule_settings
from alphalloc.errors import InvalidParameterError, InvalidScoresError, UnknownRuleError


def runs(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of equal counts: (count, how many layers)."""
    return [(count, len(list(group))) for count, group in groupby(counts)]


@pytest.mark.parametrize(
    ("rule", "layers", "total", "expected"),
    [
        ("mola_triangle", 32, 160, [(8, 8), (6, 8), (4, 8), (2, 8)]),
        ("mola_inverted_triangle", 32, 160, [(2, 8), (4, 8), (6, 8), (8, 8)]),
        ("mola_hourglass", 32, 160, [(8, 8), (2, 16), (8, 8)]),
        ("mola_diamond", 32, 160, [(2, 8), (8, 16), (2, 8)]),
        ("mola_rectangle", 32, 160, [(5, 32)]),
        ("mola_triangle", 32, 128, [(6, 8), (5, 8), (3, 8), (2, 8)]),
        ("mola_triangle", 30, 150, [(8, 6), (7, 2), (6, 7), (4, 8), (2, 7)]),
        ("mola_inverted_triangle", 30, 150, [(2, 8), (4, 7), (6, 8), (9, 2), (8, 5)]),
        ("mola_inverted_triangle", 28, 140, [(2, 7), (4, 7), (6, 7), (8, 7)]),
        ("pattern:4,6,8,10", 32, 224, [(4, 8), (6, 8), (8, 8), (10, 8)]),
        ("pattern:6,5,3,2", 32, 128, [(6, 8), (5, 8), (3, 8), (2, 8)]),
        ("pattern:[10, 2, 2, 2]", 32, 128, [(10, 8), (2, 24)]),
        ("pattern:1,2", 5, 14, [(2, 3), (4, 2)]),  # layers 0-2 are the first half: floor(2 * i / 5) = 0
        ("uniform", 32, 160, [(5, 32)]),
        ("uniform", 4, 6, [(2, 2), (1, 2)]),
    ],
)
def test_patterns(rule: str, layers: int, total: int, expected: list[tuple[int, int]]) -> None:
    assert runs(allocate([3.0] * layers, total, rule=rule).num_experts) == expected


def test_alpha_power_is_the_power() -> None:
    assert RULES["alpha_power"].weights([2.0, 4.0], beta=2.5) == (2.0**2.5, 4.0**2.5)
    assert RULES["alpha_power"].weights([2.0, 4.0], beta=0) == (1.0, 1.0)


def test_the_pattern_may_be_given_as_a_setting() -> None:
    inline = allocate([3.0] * 8, 40, rule="pattern:8,6,4,2")
    assert inline.rule.params == {"pattern": [8, 6, 4, 2]}
    assert allocate([3.0] * 8, 40, rule="pattern", params={"pattern": [8, 6, 4, 2]}) == inline


def test_every_rule_says_what_it_is_and_where_from() -> None:
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.summary
        assert rule.source


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("alpha", UnknownRuleError, r"'alpha'; there are: alpha_power, linear, softmax, uniform, mola_triangle"),
        ("", UnknownRuleError, "no allocation rule is called ''"),
        (None, UnknownRuleError, "no allocation rule is called 'None'"),
        ("uniform:3", InvalidParameterError, "'uniform' takes nothing after a colon"),
        ("pattern:8,x", InvalidParameterError, "must be followed by numbers"),
        ("pattern:", InvalidParameterError, "must be followed by numbers"),
        ("pattern:8,0", InvalidParameterError, "positive numbers only"),
        ("pattern:8,-1", InvalidParameterError, "positive numbers only"),
        ("pattern:8,nan", InvalidParameterError, "pattern must be a finite number, found nan"),
        ("pattern:1,2,3,4,5", InvalidParameterError, "5 numbers does not fit 4 layers"),
        ("pattern", InvalidParameterError, "rule 'pattern' needs pattern, as in 'pattern:8,6,4,2'"),
    ],
)
def test_bad_rules(text, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        allocate([3.0] * 4, 20, rule=text)


@pytest.mark.parametrize("pattern", ["8642", [], 3, {8: 1}])
def test_patterns_that_are_no_lists(pattern) -> None:
    with pytest.raises(InvalidParameterError, match="pattern must be a list of positive numbers"):
        allocate([3.0] * 4, 20, rule="pattern", params={"pattern": pattern})


@pytest.mark.parametrize("beta", [math.nan, math.inf, "2.5", None, True, [2.5]])
def test_beta_must_be_a_number(beta) -> None:
    with pytest.raises(InvalidParameterError, match="beta must be a finite number"):
        allocate([3.0] * 4, 20, beta=beta)


@pytest.mark.parametrize("beta", [600, 1e300, -1e300])
@pytest.mark.timeout(5)
def test_beta_that_overflows_names_the_way_out(beta: float) -> None:
    with pytest.raises(InvalidParameterError, match=r"leaves the range of numbers.*nearer to 0"):
        allocate([2.0, 4.0], 20, beta=beta)


def test_settings_of_another_rule_are_refused_not_ignored() -> None:
    with pytest.raises(InvalidParameterError, match=r"rule 'uniform' has no setting 'beta'; its settings: none"):
        allocate([3.0] * 4, 20, rule="uniform", beta=3)
    with pytest.raises(InvalidParameterError, match=r"rule 'alpha_power' has no setting 'gamma'; its settings: beta"):
        rule_settings(parse_rule("alpha_power")[0], {"gamma": 1})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0, -1.5, None, "3", True, [3.0], 10**400])
@pytest.mark.timeout(5)
def test_scores_that_are_no_scores(bad) -> None:
    with pytest.raises(InvalidScoresError, match="layer 1: alpha must be a positive finite number, found"):
        checked_scores([3.0, bad])


@pytest.mark.parametrize("bad", [[], (), "3,4", {0: 3.0}, 3.0, None, {3.0}, iter([3.0]), np.zeros((0,))])
@pytest.mark.timeout(5)
def test_what_is_not_a_list_of_scores(bad) -> None:
    with pytest.raises(InvalidScoresError, match=r"expected (a list of numbers, )?one alpha a layer"):
        checked_scores(bad)


def test_numpy_scores_are_fine_and_matrices_are_not() -> None:
    assert checked_scores(np.array([2.5, 3.5], dtype=np.float32)) == (2.5, 3.5)
    with pytest.raises(InvalidScoresError, match="layer 0: alpha must be"):
        checked_scores(np.ones((2, 2)))
