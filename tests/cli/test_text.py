"""Text for terminals: printable, one line, suggestions that fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alphalloc.cli.schedule_table import BAR_WIDTH, bar
from alphalloc.cli.text import MAX_LINE, byte_size, did_you_mean, one_line, plain

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # surrogates too


@given(ANY_TEXT)
def test_plain_is_printable_and_settled(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)


def test_plain_spells_out() -> None:
    assert plain("a\x1b[31m\n\u202eb é") == r"a\x1b[31m\n\u202eb é"


@given(ANY_TEXT)
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


def test_one_line_is_cut() -> None:
    assert one_line("a  b\n\tc") == "a b c"
    assert one_line("x" * 9000) == "x" * (MAX_LINE - 3) + "..."


def test_did_you_mean() -> None:
    assert did_you_mean("kss", ["ks", "xmin_peak"]) == "; did you mean 'ks'?"
    assert did_you_mean("zzz", ["ks", "xmin_peak"]) == "; known: ks, xmin_peak"


def test_byte_size() -> None:
    sizes = [byte_size(count) for count in (0, 1023, 1024, 1536 * 1024, 3 * 2**30, 5 * 2**40, 5000 * 2**40)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 GiB", "5.0 TiB", "5000.0 TiB"]


def test_bar() -> None:
    assert bar(1.0) == "█" * BAR_WIDTH
    assert (bar(0.0), bar(-1.0), bar(2.0)) == ("", "", "█" * BAR_WIDTH)
    assert bar(0.5, width=3) == "█▌"
    assert bar(0.5, width=4, ascii_only=True) == "##"


@given(st.floats(0, 1), st.floats(0, 1))
def test_longer_share_never_has_the_shorter_bar(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert len(bar(low)) <= len(bar(high)) <= BAR_WIDTH
