"""GGUF files: llama.cpp's container of quantised models, read one tensor at a time and dequantised to float32.

The header is parsed here, with a bound on every count, because a crafted length makes a reader that trusts it loop
for ever; the ``gguf`` package supplies the block sizes and the dequantisation of every type. GGUF stores dimensions
fastest first, so shapes are reversed to (out_features, in_features).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from alphalloc.checkpoint.buffers import NUMPY_DTYPES, FileSlice, NotNumbers, read_raw, scratch
from alphalloc.checkpoint.files import MAX_TENSORS, open_regular, read_into
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, Array, StoredTensor, frozen
from alphalloc.errors import CorruptCheckpointError, MissingExtraError, UnsupportedCheckpointError

MAX_HEADER_BYTES = 256 * 2**20  # chosen here: the tokenizer lies in the header, 10 MB for 262,144 tokens
MAX_STRINGS = 4_000_000  # chosen here: tokens and merges of the largest vocabularies stay below one million
_SLAB_VALUES = 2**20  # numbers dequantised at a time: the temporaries stay a few times 4 MiB
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {0: ("F32", 4), 1: ("F16", 2), 24: ("I8", 1), 25: ("I16", 2), 26: ("I32", 4), 27: ("I64", 8),
          28: ("F64", 8), 30: ("BF16", 2)}  # fmt: skip


@dataclass(frozen=True)
class GGUFHeader:
    """Scalar and string metadata (arrays are passed over) and the tensors of one file."""

    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]


def read_header(path: Path) -> GGUFHeader:
    """Return the metadata and tensors of one ``.gguf`` file (version 2 or 3, little-endian) from its header alone.

    Raises CorruptCheckpointError for a truncated or contradictory file, UnsupportedCheckpointError for another
    version, byte order or a type without dequantisation, MissingExtraError when quantised types need the ``gguf``
    package and it is not installed.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        cursor = _Cursor(descriptor, path, size)
        _check_version(cursor)
        tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
        if tensor_count > MAX_TENSORS or key_count > MAX_TENSORS:
            raise CorruptCheckpointError(
                f"{path}: expected at most {MAX_TENSORS} tensors and keys, found {tensor_count} and {key_count}"
            )
        metadata = _metadata(cursor, key_count)
        infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CorruptCheckpointError(f"{path}: expected an alignment that is a power of two, found {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    if len({name for name, *_ in infos}) != len(infos):
        raise CorruptCheckpointError(f"{path}: a tensor name stands there twice; it is not read")
    tensors = [_tensor(path, size, data_start, *info) for info in infos]
    _check_layout(path, tensors)
    return GGUFHeader(metadata, tuple(tensors))


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the few facts of ``config.json`` that the metadata hold. GGUF stores q, k and v one after the other."""
    architecture = metadata.get("general.architecture")
    keys = {
        "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length", "hidden_size": "embedding_length",
    }  # fmt: skip
    found = {ours: metadata.get(f"{architecture}.{theirs}") for ours, theirs in keys.items()}
    return {"model_type": "gguf"} | {key: value for key, value in found.items() if isinstance(value, int)}


class _Cursor:
    """Reads the header forward in pieces of 1 MiB; every read is checked against the end of the file."""

    def __init__(self, descriptor: int, path: Path, size: int) -> None:
        self.descriptor, self.path, self.size = descriptor, path, min(size, MAX_HEADER_BYTES)
        self.position = 0
        self._piece, self._start = b"", 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise CorruptCheckpointError(
                f"{self.path}: header asks for {count} bytes at byte {self.position}, {self.size} are there; truncated"
            )
        begin = self.position - self._start
        if begin + count > len(self._piece):
            piece = bytearray(min(max(count, 2**20), self.size - self.position))
            read_into(self.descriptor, memoryview(piece), self.position, self.path)
            self._piece, self._start, begin = bytes(piece), self.position, 0
        self.position += count
        return self._piece[begin : begin + count]

    def skip(self, count: int) -> None:
        if count > self.size - self.position:
            self.take(count)
        self.position += count
        self._start, self._piece = (
            (self._start, self._piece) if self.position <= self._start + len(self._piece) else (self.position, b"")
        )

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise CorruptCheckpointError(f"{self.path}: text in the header is not UTF-8: {exc}") from exc


def _check_version(cursor: _Cursor) -> None:
    if cursor.take(4) != b"GGUF":
        raise CorruptCheckpointError(f"{cursor.path}: expected a GGUF file, found other leading bytes")
    version = cursor.number("I")
    if version not in (2, 3):
        big_endian = version and version & 0xFFFF == 0
        what = "a big-endian file" if big_endian else f"version {version}"
        raise UnsupportedCheckpointError(f"{cursor.path}: GGUF version 2 or 3, little-endian, is read; found {what}")


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text()
        if key in found:
            raise CorruptCheckpointError(f"{cursor.path}: the key {key[:200]!r} stands in the header twice")
        found[key] = _value(cursor, cursor.number("I"))
    return found


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        _skip_array(cursor)
        return None
    if kind not in _SCALARS:
        raise CorruptCheckpointError(f"{cursor.path}: unknown metadata type {kind} at byte {cursor.position}")
    code = "<" + _SCALARS[kind]
    return struct.unpack(code, cursor.take(struct.calcsize(code)))[0]


def _skip_array(cursor: _Cursor) -> None:
    kind, length = cursor.number("I"), cursor.number("Q")
    if kind in _SCALARS:
        cursor.skip(length * struct.calcsize("<" + _SCALARS[kind]))
    elif kind == _STRING and length <= MAX_STRINGS:
        for _ in range(length):
            cursor.skip(cursor.number("Q"))
    else:
        raise CorruptCheckpointError(f"{cursor.path}: array of {length} values of type {kind} in the header; not read")


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    dims = cursor.number("I")
    if dims > 8:
        raise CorruptCheckpointError(f"{cursor.path}: tensor {name[:200]!r} claims {dims} dimensions; not read")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dims)]))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _tensor(
    path: Path, size: int, data_start: int, name: str, shape: tuple[int, ...], code: int, offset: int
) -> StoredTensor:
    where = f"{path}: tensor {name[:200]!r}"
    dtype, block, block_bytes = _type(path, name, code)
    count = prod(shape)
    row = shape[-1] if shape else 1
    if row % block:
        raise CorruptCheckpointError(f"{where}: rows of {row} numbers do not fill {dtype} blocks of {block}")
    nbytes = count // block * block_bytes
    begin = data_start + offset
    if begin + nbytes > size:
        raise CorruptCheckpointError(f"{where}: ends at byte {begin + nbytes} of a file of {size}; truncated")
    if dtype in FLOAT_DTYPES:
        plain = FileSlice(str(path), begin, shape, dtype, size)
        return StoredTensor(name, shape, dtype, nbytes, str(path), plain, offset=begin)
    if code in _PLAIN:
        return StoredTensor(name, shape, dtype, nbytes, str(path), NotNumbers(name, dtype), offset=begin)
    packed = PackedSlice(str(path), begin, shape, code, block, block_bytes, size)
    return StoredTensor(name, shape, dtype, nbytes, str(path), packed, offset=begin, quantized=True)


def _type(path: Path, name: str, code: int) -> tuple[str, int, int]:
    """Name, numbers in a block and bytes of a block of a GGML type."""
    if code in _PLAIN:
        dtype, nbytes = _PLAIN[code]
        return dtype, 1, nbytes
    constants, quants = _gguf_package(path)
    try:
        kind = constants.GGMLQuantizationType(code)
        block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as exc:
        raise UnsupportedCheckpointError(f"{path}: tensor {name[:200]!r} has the unknown GGML type {code}") from exc
    try:
        quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except NotImplementedError as exc:
        raise UnsupportedCheckpointError(
            f"{path}: tensor {name[:200]!r} has type {kind.name}, which the gguf package cannot dequantise"
        ) from exc
    return kind.name, int(block), int(block_bytes)


def _gguf_package(path: Path | str) -> tuple[Any, Any]:
    try:
        from gguf import constants, quants
    except ImportError as exc:
        raise MissingExtraError(
            f"{path}: quantised GGUF tensors need the gguf package: pip install 'alphalloc[gguf]'"
        ) from exc
    return constants, quants


def _check_layout(path: Path, tensors: list[StoredTensor]) -> None:
    position, before = 0, ""
    for tensor in sorted(tensors, key=lambda t: (t.offset or 0, t.nbytes)):
        begin = tensor.offset or 0
        if begin < position:
            raise CorruptCheckpointError(f"{path}: tensors {before[:200]!r} and {tensor.name[:200]!r} overlap")
        position, before = begin + tensor.nbytes, tensor.name


@dataclass(frozen=True)
class PackedSlice:
    """Loads one quantised matrix: reads its packed blocks and dequantises them by slabs of rows to float32."""

    path: str
    offset: int
    shape: tuple[int, ...]
    code: int
    block: int
    block_bytes: int
    file_bytes: int

    def narrow(self, start: int, stop: int, shape: tuple[int, ...]) -> PackedSlice:
        """The part from ``start`` to ``stop`` of the first axis, as ``shape``; rows are whole blocks."""
        step = prod(self.shape[1:]) // self.block * self.block_bytes
        return replace(self, offset=self.offset + start * step, shape=shape)

    def __call__(self) -> Array:
        constants, quants = _gguf_package(self.path)
        kind = constants.GGMLQuantizationType(self.code)
        rows, cols = prod(self.shape[:-1]), self.shape[-1]
        row_bytes = cols // self.block * self.block_bytes
        packed = read_raw(self.path, self.offset, rows * row_bytes, self.file_bytes).reshape(rows, row_bytes)
        values: Array = scratch(rows * cols * 4, slot="values").view(NUMPY_DTYPES["F32"]).reshape(rows, cols)
        step = max(1, _SLAB_VALUES // max(cols, 1))
        for start in range(0, rows, step):
            values[start : start + step] = quants.dequantize(packed[start : start + step], kind)
        return frozen(values.reshape(self.shape))
