"""Reads the block matrices of a Whisper model in CTranslate2's binary format (version 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FLOAT16 = 4  # the format's code
LAYOUT = {
    "self_attention/linear_0": ("self.q_proj", "self.k_proj", "self.v_proj"),  # fused along the rows
    "self_attention/linear_1": ("self.o_proj",),
    "attention/linear_0": ("cross.q_proj",),
    "attention/linear_1": ("cross.k_proj", "cross.v_proj"),
    "attention/linear_2": ("cross.o_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def block_matrices(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (block, role, weight out x in) of every matrix of every block; fused projections are split."""
    for name, values in variables(path.read_bytes()):
        stack, _, rest = name.partition("/")
        block, _, place = rest.partition("/")
        roles = LAYOUT.get(place.removesuffix("/weight"))
        if block.startswith("layer_") and roles:
            for role, part in zip(roles, np.split(values, len(roles)), strict=True):
                yield f"{stack} {int(block.removeprefix('layer_'))}", role, part


def variables(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values of every float16 variable with two dimensions."""
    position = 0

    def number(kind: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{kind}", data, position)
        position += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal position
        length = number("H")
        position += length
        return data[position - length : position].rstrip(b"\0").decode()

    version, _, _ = number("I"), text(), number("I")
    if version != 6:
        raise ValueError(f"expected version 6 of the format, found {version}")
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind, length = number("B"), number("I")
        if rank == 2 and kind == FLOAT16:
            yield name, np.frombuffer(data, "<f2", length // 2, position).reshape(shape)
        position += length
