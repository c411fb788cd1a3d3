"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes without gaps.

The header is parsed here rather than by the safetensors library, for three reasons: its length is checked before
it is parsed, a name that stands there twice is refused, and tensors are read by offset into a reused buffer instead
of through a memory map whose pages stay resident.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

from alphalloc.checkpoint.buffers import STORED_DTYPES, FileSlice, NotNumbers
from alphalloc.checkpoint.files import MAX_TENSORS, open_regular, parse_json_object, read_into
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, StoredTensor
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError

MAX_HEADER_BYTES = 16 * 2**20  # chosen here: 100,000 tensors need about 12 MB

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_headers(path: Path) -> list[StoredTensor]:
    """Return the tensors of one ``.safetensors`` file in header order, reading its header only.

    Raises CorruptCheckpointError, with the file and the reason, for a header over 16 MiB or 100,000 tensors (before
    parsing it), a truncated file, broken JSON, a name given twice, overlapping or missing byte ranges, trailing
    bytes, and sizes that contradict shape and dtype; UnsupportedCheckpointError for a dtype it does not know.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        header, data_start = _read_header(descriptor, path, size)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path}: expected at most {MAX_TENSORS} tensors, found {len(header)}")
    tensors = [_tensor(path, name, entry, data_start, size) for name, entry in header.items()]
    _check_layout(path, tensors, data_start, size)
    return tensors


def _read_header(descriptor: int, path: Path, size: int) -> tuple[dict[str, Any], int]:
    if size < 10:
        raise CorruptCheckpointError(f"{path}: expected a safetensors file, found {size} bytes; copy it again")
    prefix = bytearray(8)
    read_into(descriptor, memoryview(prefix), 0, path)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptCheckpointError(
            f"{path}: expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}; this is not a usable "
            "safetensors file"
        )
    if 8 + length > size:
        raise CorruptCheckpointError(f"{path}: header of {length} bytes in a file of {size}; truncated, copy it again")
    text = bytearray(length)
    read_into(descriptor, memoryview(text), 8, path)
    # A tensor needs a `"data_offsets"`: counting them bounds the work before any parsing.
    count = text.count(b'"data_offsets"')
    if count > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path}: expected at most {MAX_TENSORS} tensors, found {count}; not read")
    return parse_json_object(bytes(text), f"{path}: header"), 8 + length


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CorruptCheckpointError(f"{where}: expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape):
        raise CorruptCheckpointError(f"{where}: expected a shape of non-negative integers, found {str(shape)[:200]}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptCheckpointError(f"{where}: expected data_offsets [begin, end], found {str(offsets)[:200]}")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise UnsupportedCheckpointError(f"{where}: dtype {str(dtype)[:50]!r} is not read; save it as F16, BF16 or F32")
    begin, end = offsets
    bits = prod(shape) * _BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise CorruptCheckpointError(
            f"{where}: shape {shape} of {dtype} takes {bits / 8:g} bytes, the header gives it {end - begin}"
        )
    if data_start + end > size:
        raise CorruptCheckpointError(f"{where}: ends at byte {data_start + end} of a file of {size}; truncated")
    offset = data_start + begin
    raw = FileSlice(str(path), offset, tuple(shape), dtype, size) if dtype in STORED_DTYPES else None
    load = raw if raw is not None and dtype in FLOAT_DTYPES else NotNumbers(name, dtype)
    return StoredTensor(name, tuple(shape), dtype, end - begin, str(path), load, offset=offset, raw=raw)


def _is_sizes(value: Any) -> bool:
    """Whether ``value`` is a short list of integers in 0 .. 2^63 - 1 (a bool is not an integer here)."""
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check_layout(path: Path, tensors: list[StoredTensor], data_start: int, size: int) -> None:
    """The byte ranges must follow each other without overlap, without holes, and up to the end of the file."""
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.offset or 0, t.nbytes)):
        begin = tensor.offset or 0
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise CorruptCheckpointError(f"{path}: tensor {tensor.name[:200]!r} {fault} (byte {begin}, not {position})")
        position = begin + tensor.nbytes
    if position != size:
        raise CorruptCheckpointError(f"{path}: {size - position} bytes after the last tensor; expected none")
