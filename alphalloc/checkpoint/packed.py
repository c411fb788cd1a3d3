"""Packed weights back to float32, each by its published layout, in slabs so that the temporaries stay small.

Every class here is a loader: called, it reads the codes of one matrix and its scales and returns the out x in values in
a buffer of the thread. The codes are read last: they lie in a buffer that the next read would overwrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from alphalloc.checkpoint.buffers import scratch
from alphalloc.checkpoint.matrices import Array, frozen
from alphalloc.errors import CorruptCheckpointError

Raw = Callable[[], Array]
_SLAB_VALUES = 2**20  # numbers unpacked at a time: the temporaries stay a few times 4 MiB
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a 32-bit word holds, lowest nibble first
_INT8_STEP = 1.0 / 127.0
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)  # OCP E2M1


@dataclass(frozen=True)
class Nested:
    """The scales of bitsandbytes' 4-bit blocks when they are 8-bit codes themselves."""

    codes: Raw
    scales: Raw
    blocksize: int
    offset: float


@dataclass(frozen=True)
class FourBit:
    """bitsandbytes nf4 and fp4: two codes a byte, the first in the high half, into a table of 16; a scale a block."""

    name: str
    packed: Raw
    table: Raw
    absmax: Raw
    nested: Nested | None
    blocksize: int
    shape: tuple[int, int]

    def __call__(self) -> Array:
        scales = np.array(self.absmax()).reshape(-1)
        if self.nested is not None:
            codes = np.array(self.nested.codes(), dtype=np.float32).reshape(-1)
            outer = np.array(self.nested.scales(), dtype=np.float32).reshape(-1)
            scales = codes[scales] * outer.repeat(self.nested.blocksize)[: len(scales)] + np.float32(self.nested.offset)
        scales = scales.astype(np.float32, copy=False)
        table = np.array(self.table(), dtype=np.float32).reshape(-1)
        packed = self.packed().reshape(-1)
        count = prod(self.shape)
        blocks = -(-count // self.blocksize)
        expect(self.name, (2 * len(packed), len(scales), len(table)), (count + count % 2, blocks, 16))
        values = _buffer((count + count % 2,))
        for start, stop in _slabs(blocks, self.blocksize):
            begin, end = start * self.blocksize, min(stop * self.blocksize, len(values))
            part = packed[begin // 2 : end // 2]
            values[begin:end:2], values[begin + 1 : end : 2] = table[part >> 4], table[part & 15]
            values[begin:end] *= scales[start:stop].repeat(self.blocksize)[: end - begin]
        return frozen(values[:count].reshape(self.shape))


@dataclass(frozen=True)
class RowInt8:
    """bitsandbytes int8: a row is its codes times its largest magnitude over 127."""

    name: str
    codes: Raw
    absmax: Raw
    shape: tuple[int, int]

    def __call__(self) -> Array:
        scales = np.array(self.absmax(), dtype=np.float32).reshape(-1, 1) * np.float32(_INT8_STEP)
        codes = self.codes()
        expect(self.name, (scales.shape[0], *codes.shape), (self.shape[0], *self.shape))
        values = _buffer(self.shape)
        for start, stop in _slabs(*self.shape):
            np.multiply(codes[start:stop], scales[start:stop], out=values[start:stop], dtype=np.float32)
        return frozen(values)


@dataclass(frozen=True)
class Gptq:
    """GPTQ (arXiv 2210.17323) as AutoGPTQ packs it: codes of one column follow each other as bits of 32-bit words.

    ``offset`` is 1 for the first format, whose zero points are stored less one. ``groups`` names the group of every
    input; without it ``group_size`` inputs follow each other.
    """

    name: str
    packed: Raw
    zeros: Raw
    scales: Raw
    groups: Raw | None
    group_size: int
    bits: int
    offset: int
    shape: tuple[int, int]

    def __call__(self) -> Array:
        out, width = self.shape
        scales = np.array(self.scales(), dtype=np.float32)
        words = np.array(self.zeros()).view(np.uint32)
        mask = (1 << self.bits) - 1
        zeros = ((unpack_bits(words.T, self.bits, out).T + self.offset) & mask).astype(np.float32)
        groups = np.arange(width) // self.group_size if self.groups is None else np.array(self.groups()).reshape(-1)
        expect(self.name, (*zeros.shape, len(groups)), (*scales.shape, width))
        if len(groups) and not (groups.min() >= 0 and groups.max() < len(scales)):
            raise CorruptCheckpointError(f"{self.name}: names groups outside its {len(scales)}; copy the file again")
        packed = self.packed().view(np.uint32)
        values = _buffer((width, out))
        for start, stop in _slabs(width // 32, 32 * out):
            rows = slice(start * 32, stop * 32)
            codes = unpack_bits(packed[start * self.bits : stop * self.bits], self.bits, (stop - start) * 32)
            np.subtract(codes, zeros[groups[rows]], out=values[rows], dtype=np.float32, casting="unsafe")
            values[rows] *= scales[groups[rows]]
        return frozen(values.T)


@dataclass(frozen=True)
class Awq:
    """AWQ (arXiv 2306.00978), "gemm": eight columns a 32-bit word in the order 0 2 4 6 1 3 5 7."""

    name: str
    packed: Raw
    zeros: Raw
    scales: Raw
    shape: tuple[int, int]

    def __call__(self) -> Array:
        out, width = self.shape
        scales = np.array(self.scales(), dtype=np.float32)
        zeros = _awq_codes(np.array(self.zeros()).view(np.uint32)).astype(np.float32)
        packed = self.packed().view(np.uint32)
        expect(self.name, (*zeros.shape, packed.shape[0], packed.shape[1] * 8), (*scales.shape, width, out))
        size = -(-width // max(len(scales), 1))
        groups = np.arange(width) // size
        values = _buffer((width, out))
        for start, stop in _slabs(width, out):
            of = groups[start:stop]
            np.subtract(_awq_codes(packed[start:stop]), zeros[of], out=values[start:stop], casting="unsafe")
            values[start:stop] *= scales[of]
        return frozen(values.T)


@dataclass(frozen=True)
class Scaled:
    """Plain 8-bit codes (float8 or int8) times a scale for the tensor, a row, a group or a block; less a zero point."""

    name: str
    codes: Raw
    scales: Raw
    zeros: Raw | None
    block: tuple[int, int]
    shape: tuple[int, int]

    def __call__(self) -> Array:
        scales = np.array(self.scales(), dtype=np.float32)
        zeros = None if self.zeros is None else np.array(self.zeros(), dtype=np.float32)
        codes = self.codes()
        expect(self.name, codes.shape, self.shape)
        values = _buffer(self.shape)
        for start, stop in _slabs(*self.shape):
            values[start:stop] = codes[start:stop]
            if zeros is not None:
                values[start:stop] -= _spread(self.name, zeros, self.shape, self.block, start, stop)
            values[start:stop] *= _spread(self.name, scales, self.shape, self.block, start, stop)
        return frozen(values)


@dataclass(frozen=True)
class PackedRows:
    """compressed-tensors' pack-quantized: signed codes of a row, shifted to be positive, as bits of 32-bit words."""

    name: str
    packed: Raw
    scales: Raw
    zeros: Raw | None
    groups: Raw | None
    bits: int
    shape: tuple[int, int]

    def __call__(self) -> Array:
        out, width = self.shape
        half = 1 << (self.bits - 1)
        scales = np.array(self.scales(), dtype=np.float32)
        scales = scales.reshape(-1, 1) if scales.ndim < 2 else scales
        zeros = None
        if self.zeros is not None:
            words = np.array(self.zeros()).view(np.uint32)
            zeros = unpack_bits(words, self.bits, out).astype(np.float32) - half
            expect(self.name, zeros.shape, scales.shape)
        size = -(-width // scales.shape[1])
        of = np.arange(width) // size if self.groups is None else np.array(self.groups()).reshape(-1)
        if len(of) != width or (width and not (of.min() >= 0 and of.max() < scales.shape[1])):
            raise CorruptCheckpointError(f"{self.name}: names groups outside its {scales.shape[1]}; copy it again")
        packed = self.packed().view(np.uint32)
        expect(self.name, (packed.shape[0],), (out,))
        values = _buffer(self.shape)
        for start, stop in _slabs(out, width):
            rows = slice(start, stop) if scales.shape[0] == out else slice(0, 1)
            values[start:stop] = unpack_bits(packed[start:stop].T, self.bits, width).T
            values[start:stop] -= half
            if zeros is not None:
                values[start:stop] -= zeros[rows][:, of]
            values[start:stop] *= scales[rows][:, of]
        return frozen(values)


@dataclass(frozen=True)
class Mxfp4:
    """OCP microscaling FP4 as gpt-oss stores it: 16 bytes hold 32 numbers, the first in the low half, times 2^(s-127).

    ``shape`` is that of the values; ``blocks`` and ``scales`` have the same leading axes.
    """

    blocks: Any
    scales: Any
    shape: tuple[int, ...]

    def narrow(self, start: int, stop: int, shape: tuple[int, ...]) -> Mxfp4:
        """The part from ``start`` to ``stop`` of the first axis, as ``shape``."""
        inner = (*shape[:-1], shape[-1] // 32)
        return replace(
            self,
            blocks=self.blocks.narrow(start, stop, (*inner, 16)),
            scales=self.scales.narrow(start, stop, inner),
            shape=shape,
        )

    def __call__(self) -> Array:
        rows, cols = prod(self.shape[:-1]), self.shape[-1]
        powers = np.array(self.scales()).reshape(rows, cols // 32, 1).astype(np.int32) - 127
        blocks = self.blocks().reshape(rows, cols // 32, 16)
        values = _buffer((rows, cols // 32, 32))
        for start, stop in _slabs(rows, cols):
            values[start:stop, :, ::2] = _FP4[blocks[start:stop] & 15]
            values[start:stop, :, 1::2] = _FP4[blocks[start:stop] >> 4]
            np.ldexp(values[start:stop], powers[start:stop], out=values[start:stop])
        return frozen(values.reshape(self.shape))


def unpack_bits(words: Array, bits: int, count: int) -> Array:
    """Return the first ``count`` codes of ``bits`` bits along axis 0 of 32-bit ``words``, lowest bits first."""
    at = np.arange(count) * bits
    word, shift = at // 32, (at % 32).astype(np.uint32)
    shift = shift.reshape(-1, *[1] * (words.ndim - 1))
    codes = words[word] >> shift
    spill = np.flatnonzero(at % 32 + bits > 32)
    if len(spill):
        codes[spill] |= words[word[spill] + 1] << (np.uint32(32) - shift[spill])
    return np.asarray(codes & np.uint32((1 << bits) - 1))


def expect(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise CorruptCheckpointError unless the sizes of a packed weight's pieces go together."""
    if tuple(found) != tuple(expected):
        raise CorruptCheckpointError(
            f"{name}: the pieces of this packed weight do not go together: sizes {list(expected)} were expected, "
            f"{list(found)} found; copy the file again"
        )


def _awq_codes(words: Array) -> Array:
    codes = np.empty((words.shape[0], words.shape[1] * 8), dtype=np.uint32)
    for position, column in enumerate(_AWQ_ORDER):
        codes[:, column::8] = words >> np.uint32(4 * position) & np.uint32(15)
    return codes


def _spread(name: str, scales: Array, shape: tuple[int, int], block: tuple[int, int], start: int, stop: int) -> Array:
    """The scales of rows ``start`` to ``stop``, broadcastable to them."""
    rows, cols = shape
    table = scales.reshape(-1, 1) if scales.ndim < 2 else scales
    height, width = table.shape
    tall = _side(rows, height, block[0])
    wide = _side(cols, width, block[1])
    expect(name, (-(-rows // tall), -(-cols // wide)), (height, width))
    picked = table[np.arange(start, stop) // tall]
    return picked if width == 1 else np.repeat(picked, wide, axis=1)[:, :cols]


def _side(length: int, count: int, block: int) -> int:
    """The length of each of ``count`` blocks: the known one where it fits, else equal ones."""
    if count == 1 or count == length:
        return length // count
    return block if -(-length // block) == count or length % count else length // count


def _buffer(shape: tuple[int, ...]) -> Array:
    return scratch(prod(shape) * 4, slot="values").view(np.float32).reshape(shape)


def _slabs(count: int, size: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLAB_VALUES // max(size, 1))
    for start in range(0, count, step):
        yield start, min(start + step, count)
