"""Hostile bodies: every one is refused by name, none makes the service fail."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from alphalloc_service.bodies import parse_strictly
from alphalloc_service.problems import ProblemError
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

PATH = "/v1/allocations"
GOOD = b'{"source": {"alphas": [2.1, 2.9]}, "budget": {"total": 10}}'
LIMIT = 2**20

HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "empty"),
    "blank": (b"  \n", 400, "not JSON"),
    "cut short": (GOOD[:-1], 400, "not JSON"),
    "trailing text": (GOOD + b" x", 400, "Extra data"),
    "two documents": (GOOD + GOOD, 400, "Extra data"),
    "NaN": (GOOD.replace(b"2.9", b"NaN"), 400, "NaN is not a JSON number"),
    "Infinity": (GOOD.replace(b"2.9", b"Infinity"), 400, "not a JSON number"),
    "minus Infinity": (GOOD.replace(b"2.9", b"-Infinity"), 400, "not a JSON number"),
    "beyond float64": (GOOD.replace(b"2.9", b"1e999"), 400, "beyond the range"),
    "5000 digits": (GOOD.replace(b"10", b"9" * 5000), 400, "not JSON"),
    "4000 digits": (GOOD.replace(b"10", b"9" * 4000), 422, "/budget/total"),
    "4000 digits as alpha": (GOOD.replace(b"2.9", b"9" * 4000), 422, "/source/alphas/1"),
    "smallest denormal": (GOOD.replace(b"2.9", b"5e-324"), 422, "leaves the range"),
    "underflow to zero": (GOOD.replace(b"2.9", b"1e-999"), 422, "/source/alphas/1"),
    "largest double": (GOOD.replace(b"2.9", b"1.7976931348623157e308"), 422, "leaves the range"),
    "negative zero": (GOOD.replace(b"2.9", b"-0.0"), 422, "/source/alphas/1"),
    "duplicate key": (b'{"budget": {"total": 5}, "budget": {"total": 7}}', 400, "key 'budget' twice"),
    "duplicate inner key": (GOOD.replace(b'"total"', b'"total": 5, "total"'), 400, "key 'total' twice"),
    "single quotes": (b"{'source': 1}", 400, "not JSON"),
    "comment": (b"{} // ten", 400, "not JSON"),
    "trailing comma": (b'{"budget": {"total": 5,}}', 400, "not JSON"),
    "null": (b"null", 422, "valid dictionary"),
    "a list": (b"[1, 2]", 422, "valid dictionary"),
    "a number": (b"7", 422, "valid dictionary"),
    "a string": (b'"\\u0000"', 422, "valid dictionary"),
    "an empty object": (b"{}", 422, "Field required"),
    "UTF-16": (GOOD.decode().encode("utf-16"), 400, "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, 400, "BOM"),
    "Latin-1": (b'{"m\xe9thode": 1}', 400, "not UTF-8"),
    "NUL bytes": (b"\x00" * 100, 400, "not JSON"),
    "raw control character": (b'{"a\x01": 1}', 400, "Invalid control character"),
    "lone surrogate as a name": (GOOD[:-1] + b', "method": "\\ud800"}', 422, "/method"),
    "lone surrogate as a key": (GOOD[:-1] + b', "params": {"\\udfff": 1}}', 422, ""),
    "escape sequence as a name": (GOOD[:-1] + b', "method": "\\u001b[31m"}', 422, "no allocation rule"),
    "header injection as a name": (GOOD[:-1] + b', "rounding": "x\\r\\nSet-Cookie: a"}', 422, "no rounding"),
    "nested lists": (b"[" * 100_000, 400, "too deeply"),
    "nested objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400, "too deeply"),
    "nested in params": (GOOD[:-1] + b', "params": {"beta": ' + b"[" * 500 + b"]" * 500 + b"}}", 422, "/params/beta"),
    "long pattern": (GOOD[:-1] + b', "method": "pattern:' + b"8," * 400 + b'8"}', 422, "/method"),
    "long pattern in params": (
        GOOD[:-1] + b', "method": "pattern", "params": {"pattern": ' + json.dumps([8] * 513).encode() + b"}}",
        422,
        "/params/pattern",
    ),
    "many params": (
        GOOD[:-1] + b', "params": ' + json.dumps({str(i): i for i in range(17)}).encode() + b"}",
        422,
        "16",
    ),
    "many unknown fields": (json.dumps({f"f{i}": i for i in range(9_000)}).encode(), 422, "more"),
    "too many fields": (json.dumps({f"f{i}": i for i in range(50_000)}).encode(), 400, "more than 10000 keys"),
    "prototype names": (GOOD[:-1] + b', "__proto__": {"a": 1}, "__class__": "x"}', 422, "Extra inputs"),
    "a million experts in two layers": (GOOD.replace(b"10", b"1000000"), 200, ""),
    "one expert too many": (GOOD.replace(b"10", b"1000001"), 422, "/budget/total"),
    "one byte too many": (b" " * (LIMIT + 1), 413, "larger than 1048576"),
}


def post(client: TestClient, body: bytes | Iterator[bytes], content_type: str | None = "application/json") -> Any:
    headers = {} if content_type is None else {"content-type": content_type}
    return client.post(PATH, content=body, headers=headers)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_body(client: TestClient, name: str) -> None:
    body, status, detail = HOSTILE[name]
    answer = post(client, body)
    assert answer.status_code in ((200, 201) if status == 200 else (status,)), answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert detail in answer.json()["detail"]
        assert len(answer.content) < 10_000


@pytest.mark.parametrize("rounding", ["largest_remainder", "min1_largest_remainder", "reference"])
@pytest.mark.parametrize("low", [0, 1])
def test_extreme_scores_never_fail(client: TestClient, rounding: str, low: int) -> None:
    for alphas in ([1e-300, 1e300], [1e-30, 1.0, 1e30], [1.0] * 511 + [1e9]):
        body = {"source": {"alphas": alphas}, "budget": {"total": 1000}, "rounding": rounding, "bounds": {"min": low}}
        answer = post(client, json.dumps(body).encode())
        assert answer.status_code in (200, 201, 422), answer.text


def test_limit_counts_bytes_as_they_arrive(client: TestClient) -> None:
    assert post(client, iter([b" "] * 10 + [b" " * LIMIT])).status_code == 413
    padded = GOOD + b" " * (LIMIT - len(GOOD))
    assert post(client, padded).status_code in (200, 201)


OTHER_TYPES = [
    None,
    "",
    "*/*",
    "json",
    "text/plain",
    "application/jsonp",
    "application/problem+json",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=x",
]


@pytest.mark.parametrize("content_type", OTHER_TYPES)
def test_other_media_types(client: TestClient, content_type: str | None) -> None:
    answer = post(client, GOOD, content_type)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert "expected Content-Type application/json" in answer.json()["detail"]


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_media_types(client: TestClient, content_type: str) -> None:
    assert post(client, GOOD, content_type).status_code in (200, 201)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@given(JSON_VALUES)
def test_strict_parser_reads_what_json_writes(value: Any) -> None:
    assert parse_strictly(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_strict_parser_refuses_by_its_own_error_only(body: bytes) -> None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        with pytest.raises(ProblemError, match="400"):
            parse_strictly(body)
    else:
        with contextlib.suppress(ProblemError):  # json takes NaN and duplicate keys, this parser does not
            assert parse_strictly(body) == value
