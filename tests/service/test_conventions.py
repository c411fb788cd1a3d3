"""Entity tags, preferences, cursors, Accept: what RFC 9110, RFC 7240 and this API say."""

from __future__ import annotations

import base64

import pytest
from alphalloc_service.conventions import (
    MAX_WAIT_SECONDS,
    decode_cursor,
    encode_cursor,
    idempotency_key,
    strong_etag,
    unchanged,
    wait_seconds,
    weak_etag,
)
from alphalloc_service.problems import ProblemError
from alphalloc_service.tables import CSV, JSON, PARQUET, acceptable, as_csv
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st


def request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs})


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (None, False),
        ('"abc"', True),
        ('W/"abc"', True),
        ('"x", W/"abc" , "y"', True),
        ("*", True),
        ('"abcd"', False),
        ("abc", False),
        ("", False),
    ],
)
def test_if_none_match_is_compared_weakly(given: str | None, same: bool) -> None:
    asked = request() if given is None else request(if_none_match=given)
    assert unchanged(asked, '"abc"') is same
    assert unchanged(asked, weak_etag("abc")) is same


def test_tags_tell_bytes_apart() -> None:
    assert strong_etag(b"a") != strong_etag(b"b")
    assert strong_etag(b"a") == strong_etag(b"a")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("wait=10", 10),
        ('wait="10"', 10),
        ("respond-async, WAIT=7; foo", 7),
        ("wait=600", MAX_WAIT_SECONDS),
        ("wait=99999999999999999999", MAX_WAIT_SECONDS),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait", 0),
        ("", 0),
    ],
)
def test_prefer_wait(given: str, seconds: int) -> None:
    assert wait_seconds(request(prefer=given)) == seconds


@pytest.mark.parametrize("given", ["", "a b", "x" * 256, "é", "a\tb"])
def test_unusable_idempotency_keys(given: str) -> None:
    with pytest.raises(ProblemError, match="422"):
        idempotency_key(request(idempotency_key=given))
    assert idempotency_key(request()) is None
    assert idempotency_key(request(idempotency_key="k-1")) == "k-1"


@given(st.integers(0, 10**18 - 1))
def test_cursors_come_back(seq: int) -> None:
    assert decode_cursor(encode_cursor(seq)) == seq


@given(st.text(max_size=40) | st.binary(max_size=20).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_other_cursors_are_refused(text: str) -> None:
    try:
        seq = decode_cursor(text)
    except ProblemError as exc:
        assert exc.code == "invalid-cursor"  # noqa: PT017  (either outcome is right)
    else:
        assert encode_cursor(seq) == text


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("text/*", CSV),
        ("application/*", JSON),
        ("application/json;q=0.5, text/csv;q=0.9", CSV),
        ("application/json;q=0, */*;q=0.1", CSV),
        ("text/html", None),
        ("application/json;q=0", None),
        (PARQUET, PARQUET),
        ("text/csv;q=nonsense", CSV),
    ],
)
def test_accept(accept: str | None, media: str | None) -> None:
    assert acceptable(accept, (JSON, CSV, PARQUET)) == media


def test_csv_leaves_missing_values_empty() -> None:
    assert as_csv(("a", "b"), [(1, None), ('x,"y', 2.5)]) == 'a,b\n1,\n"x,""y",2.5\n'
