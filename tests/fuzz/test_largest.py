"""Headers as large as the safetensors reader takes, made to cost much: read or refused within 1 GiB."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alphalloc.checkpoint.safetensors import MAX_HEADER_BYTES

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))
MAX_BYTES = 2**30
READ = """
import json, re, sys
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AlphallocError
try:
    answer = str(len(open_checkpoint(sys.argv[1]).matrices))
except AlphallocError as exc:
    answer = exc.code
most = re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())  # getrusage counts the parent's too
print(json.dumps([answer, int(most[1]) * 1024]))
"""


def tensors(number: int, name: str) -> bytes:
    """A header of ``number`` matrices of one element, named ``name`` with its number."""
    one = {
        name.format(at): {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * at, 2 * at + 2]} for at in range(number)
    }
    return json.dumps(one, separators=(",", ":")).encode()


def repeated(start: bytes, part: bytes, end: bytes) -> bytes:
    """A header of the largest size: ``part`` again and again."""
    return start + part * ((MAX_HEADER_BYTES - len(start) - len(end)) // len(part)) + end


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "tensors of one stack": (lambda: tensors(100_000, "model.layers.{}.mlp.up_proj.weight"), "100000"),
    "empty lists": (lambda: repeated(b'{"a":[', b"[],", b"[]]}"), "corrupt-checkpoint"),
    "empty objects": (lambda: repeated(b'{"a":[', b"{},", b"{}]}"), "corrupt-checkpoint"),
    "depth": (lambda: repeated(b'{"a":', b"[", b""), "corrupt-checkpoint"),
    "one name": (lambda: repeated(b'{"', b"a", b'":1}'), "corrupt-checkpoint"),
    "one shape": (
        lambda: repeated(b'{"a":{"dtype":"I8","data_offsets":[0,1],"shape":[', b"1,", b"1]}}"),
        "corrupt-checkpoint",
    ),
    "numbers": (lambda: repeated(b'{"a":', b"9", b"}"), "corrupt-checkpoint"),
    "a tensor given again and again": (lambda: repeated(b"{", b'"a":1,', b'"a":1}'), "corrupt-checkpoint"),
    "tensors of as many stacks": (
        lambda: tensors(100_000, "s{0}.layers.0.mlp.up_proj.weight"),
        "100000",
    ),
}
SHORT = ("tensors of one stack", "empty lists")


@pytest.mark.parametrize("what", HEADERS if LONG else SHORT)
@pytest.mark.timeout(300)
def test_the_largest_header_is_read_or_refused_within_a_gibibyte(what: str, tmp_path: Path) -> None:
    make, expected = HEADERS[what]
    header = make()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 200_000)
    command = [sys.executable, "-c", READ, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, most = json.loads(run.stdout)
    assert (answer, most < MAX_BYTES) == (expected, True), (answer, most)
