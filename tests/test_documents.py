"""Canonical JSON and atomic files."""

from __future__ import annotations

import os
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from alphalloc.documents import canonical_json, content_id, parse_document, pretty_json, read_document, write_atomic
from alphalloc.errors import DocumentError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_canonical_json_by_hand():
    assert canonical_json({"b": [1, 0.1, None], "a": "é"}) == '{"a":"é","b":[1,0.1,null]}'
    assert content_id("al_", {}) == "al_44136fa355b3678a1146ad16f7e8649e"


@given(values)
def test_equal_values_have_one_text_and_one_id(value):
    import json

    assert canonical_json(json.loads(pretty_json(value))) == canonical_json(value)
    assert pretty_json(value) == json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert content_id("x_", json.loads(canonical_json(value))) == content_id("x_", value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused(number):
    with pytest.raises(DocumentError, match="NaN or infinity"):
        canonical_json([number])
    for value in (number, [[1], number], {"a": {"b": number, "c": [1]}}, {1: [number, [1]]}):
        with pytest.raises(DocumentError, match="NaN or infinity"):
            pretty_json(value)


def test_pretty_json_of_keys_that_are_no_text():
    import json

    value = {"a": {10: {"b": [1, (2, [])]}, 9: {}}, "c": [{1: "x\ny", 2: None}]}
    assert pretty_json(value) == json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = write_atomic(tmp_path / "a.json", "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_leave_one_whole_file(tmp_path):
    texts = [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(tmp_path / "a", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_the_file_gets_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    assert write_atomic(tmp_path / "a", b"x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_documents_too_large_are_refused(tmp_path, monkeypatch):
    from alphalloc import documents

    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "big.json").write_text("x" * 11)
    with pytest.raises(DocumentError, match="larger than 10 bytes"):
        documents.read_document(tmp_path / "big.json", kind="ModelAlphas", major=1)


def test_integers_too_long_to_parse_are_a_named_error():
    with pytest.raises(DocumentError, match="not valid JSON"):
        parse_document('{"kind": ' + "9" * 10_000 + "}", kind="x", major=1)


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(DocumentError, match="cannot be read as a x document"):
            read_document(path, kind="x", major=1)


def test_lone_surrogates_are_a_named_error():
    with pytest.raises(DocumentError, match="not Unicode"):
        canonical_json(["\ud800"])
