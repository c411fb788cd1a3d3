"""Outputs are checked before the work and never destroy an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alphalloc.cli.output import check_outputs, write_outputs
from alphalloc.errors import OutputError


def test_good_paths_pass_and_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    check_outputs({"-o": tmp_path / "old.json", "--schedule": tmp_path / "a/b/new.json", "--none": None})
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "not a regular file"),
        ("file/x.json", "is not a folder"),
        ("/dev/null", "not a regular file"),
        ("/dev/stdout", "not a regular file"),
        ("/proc/self/x.json", "not a regular file"),
        ("pipe", "not a regular file"),
        ("loop", "not a usable path"),
        ("x" * 300, "not a usable path"),
        ("file", "would overwrite the input"),
        ("link", "would overwrite the input"),
        ("folder/../file", "would overwrite the input"),
    ],
)
def test_bad_paths(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("input")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=message):
        check_outputs({"-o": tmp_path / path}, inputs=[tmp_path / "file"])


def test_two_outputs_need_two_files(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--schedule .* would overwrite what --output writes"):
        check_outputs({"--output": tmp_path / "a", "--schedule": tmp_path / "." / "a"})


def test_refusal_of_the_disk_is_a_document_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_outputs({tmp_path / "file" / "a.json": "{}"})
    write_outputs({tmp_path / "a.json": "{}"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "file"]
