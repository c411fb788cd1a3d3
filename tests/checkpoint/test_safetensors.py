"""Reading safetensors: exact values against the reference library, and every way a header can lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphalloc.checkpoint import safetensors as reader
from alphalloc.checkpoint.buffers import NUMPY_DTYPES
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError

Write = Callable[..., Path]
NUMBERS = np.arange(6, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float32, "F32"), (torch.float64, "F64")],
)
def test_every_float_dtype_is_read_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype, spelled: str) -> None:
    torch.manual_seed(0)
    written = {"a": torch.randn(5, 3).to(dtype), "b": torch.randn(2, 7).to(dtype)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(written, path)
    for tensor in reader.read_headers(path):
        values = tensor.load()
        assert tensor.dtype == spelled
        assert values.dtype == NUMPY_DTYPES[spelled]
        assert values.tobytes() == written[tensor.name].contiguous().view(torch.uint8).numpy().tobytes()
        assert tensor.nbytes == values.nbytes


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.tensor([[1.5, -2.25], [3.0e38, 2.0**-130]], dtype=torch.bfloat16)}, path)
    values = reader.read_headers(path)[0].load()
    assert values.dtype == ml_dtypes.bfloat16
    assert values.astype(np.float64).tolist()[0] == [1.5, -2.25]
    assert values.astype(np.float64)[1, 1] == 2.0**-130


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_law_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=3), min_size=1, max_size=5))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    written = {f"t{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("law") / "m.safetensors"
    safetensors.numpy.save_file(written, path)
    read = {tensor.name: tensor for tensor in reader.read_headers(path)}
    assert read.keys() == written.keys()
    for name, values in written.items():
        assert read[name].shape == values.shape
        np.testing.assert_array_equal(read[name].load(), values)


def test_opening_reads_the_header_only(tmp_path: Path, write_safetensors: Write) -> None:
    entry = {"dtype": "F32", "shape": [1, 2**30], "data_offsets": [0, 2**32]}
    path = write_safetensors(tmp_path / "sparse.safetensors", header={"a": entry})
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 2**32)  # a file of 4 GiB that takes no space
    assert reader.read_headers(path)[0].nbytes == 2**32


def test_the_buffer_is_reused_and_read_only(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}, path)
    first, second = (tensor.load for tensor in reader.read_headers(path))
    ones = first()
    with pytest.raises(ValueError, match="read-only"):
        ones[0, 0] = 7
    zeros = second()
    assert np.shares_memory(ones, zeros)
    assert not zeros.any()


def test_a_file_changed_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.ones(4, 4)}, path)
    tensor = reader.read_headers(path)[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptCheckpointError, match="open the checkpoint again"):
        tensor.load()


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "overlap": ({"a": entry(), "b": entry(shape=[2, 1], data_offsets=[16, 24])}, "overlaps"),
    "same range twice": ({"a": entry(), "b": entry()}, "overlaps"),
    "hole": ({"a": entry(shape=[1], data_offsets=[0, 4]), "b": entry(shape=[1], data_offsets=[20, 24])}, "hole"),
    "hole at the start": ({"a": entry(shape=[5], data_offsets=[4, 24])}, "hole"),
    "negative side": ({"a": entry(shape=[-2, -3])}, "non-negative integers"),
    "overflowing side": ({"a": entry(shape=[2**63, 2])}, "non-negative integers"),
    "overflowing product": ({"a": entry(shape=[2**40, 2**40])}, "takes"),
    "boolean side": ({"a": entry(shape=[True, 6])}, "non-negative integers"),
    "fractional side": ({"a": entry(shape=[2.0, 3])}, "non-negative integers"),
    "a hundred sides": ({"a": entry(shape=[1] * 100)}, "non-negative integers"),
    "shape is text": ({"a": entry(shape="23")}, "non-negative integers"),
    "size mismatch": ({"a": entry(shape=[2, 2])}, "takes 16 bytes, the header gives it 24"),
    "end before begin": ({"a": entry(data_offsets=[24, 0])}, "data_offsets"),
    "three offsets": ({"a": entry(data_offsets=[0, 12, 24])}, "data_offsets"),
    "past the end": ({"a": entry(shape=[2, 30], data_offsets=[0, 240])}, "truncated"),
    "no dtype": ({"a": {"shape": [2, 3], "data_offsets": [0, 24]}}, "expected dtype"),
    "entry is a list": ({"a": [1, 2]}, "expected dtype"),
    "half a byte": ({"a": entry(dtype="F4", shape=[3, 1], data_offsets=[0, 24])}, "takes 1.5 bytes"),
    "trailing bytes": ({"a": entry(shape=[5], data_offsets=[0, 20])}, "4 bytes after the last tensor"),
    "nothing but bytes": ({}, "24 bytes after the last tensor"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, write_safetensors: Write, name: str) -> None:
    header, message = LIES[name]
    path = write_safetensors(tmp_path / "bad.safetensors", header=header, data=NUMBERS)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        reader.read_headers(path)
    assert "bad.safetensors" in str(caught.value)


def test_unknown_dtype_is_refused_by_name(tmp_path: Path, write_safetensors: Write) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", header={"a": entry(dtype="Q9")}, data=NUMBERS)
    with pytest.raises(UnsupportedCheckpointError, match="'Q9'"):
        reader.read_headers(path)


def test_a_name_given_twice_is_refused(tmp_path: Path, write_safetensors: Write) -> None:
    one = json.dumps(entry())
    path = write_safetensors(tmp_path / "m.safetensors", raw_header=f'{{"a":{one},"a":{one}}}'.encode(), data=NUMBERS)
    with pytest.raises(CorruptCheckpointError, match="'a' stands there twice"):
        reader.read_headers(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"\x02\0\0\0\0\0\0", "7 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", f"found {2**63}"),
        ((200 * 2**20).to_bytes(8, "little") + b"{}", "at most 16777216"),
        ((100).to_bytes(8, "little") + b"{}" + b" " * 50, "truncated"),
        ((2).to_bytes(8, "little") + b"[]", "expected a JSON object"),
        ((3).to_bytes(8, "little") + b"{a}", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "not valid JSON"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "not valid JSON"),
        ((5006).to_bytes(8, "little") + b'{"a":' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["empty", "seven bytes", "2^63", "200 MB", "cut header", "a list", "not JSON", "not UTF-8", "deep", "long int"],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=message):
        reader.read_headers(path)


def test_too_many_tensors_are_refused_before_parsing(tmp_path: Path, write_safetensors: Write) -> None:
    one = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    raw = ("{" + ",".join(f'"{i}":{one}' for i in range(100_001)) + "}").encode()
    path = write_safetensors(tmp_path / "m.safetensors", raw_header=raw)
    with pytest.raises(CorruptCheckpointError, match="at most 100000 tensors"):
        reader.read_headers(path)


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3, 3), "b": torch.ones(2)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            reader.read_headers(path)
