"""Wilson's and Student's intervals: exact cases, laws, a naive re-derivation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.training.intervals import mean_interval, paired_interval, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (5, 10, 0.236593, 0.763407),
        (81, 263, 0.255289, 0.366210),  # the example of R. G. Newcombe, Stat. Med. 17 (1998): 0.2553 to 0.3662
        (0, 20, 0.0, 0.161125),
        (20, 20, 0.838875, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_known_intervals(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-6)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_limits_are_where_the_score_test_rejects(case):
    correct, total = case
    low, high = wilson(correct, total)
    p = correct / total
    assert 0 <= low <= p <= high <= 1
    for limit in (low, high):
        if 0 < limit < 1:  # |p - limit| is exactly z standard errors under the limit
            assert abs(p - limit) == pytest.approx(Z * math.sqrt(limit * (1 - limit) / total), rel=1e-6, abs=1e-12)
    mirrored = wilson(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match="expected 0 <= correct <= total"):
        wilson(correct, total)


def test_three_seeds_have_students_interval():
    found = mean_interval([0.70, 0.74, 0.78])
    assert found.value == pytest.approx(0.74)
    assert found.plain() == pytest.approx([0.74 - 0.0993655, 0.74 + 0.0993655], abs=1e-6)  # 4.302653 * 0.04 / sqrt(3)


def test_one_value_has_no_interval():
    assert mean_interval([0.5]).plain() is None
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9))
def test_a_paired_difference_turns_round(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = paired_interval(first, second), paired_interval(second, first)
    assert forth.value == pytest.approx(-back.value, abs=1e-12)
    assert forth.low == pytest.approx(-back.high, abs=1e-12)


def test_a_shift_that_is_the_same_for_every_seed_is_certain():
    found = paired_interval([0.7, 0.8, 0.6], [0.6, 0.7, 0.5])
    assert found.plain() == pytest.approx([0.1, 0.1], abs=1e-9)
