"""Fuzzer of the safetensors reader: the input is a header (its length goes in front) or, one time in four, a file."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["alphalloc"]):
    from alphalloc.checkpoint import open_checkpoint
    from alphalloc.errors import AlphallocError

sys.path.insert(0, str(Path(__file__).parent))
from harness import mutate_json, run

PATH = Path(tempfile.mkdtemp(prefix="alphalloc-fuzz-")) / "model.safetensors"
TENSORS = {
    f"model.layers.{layer}.self_attn.{role}_proj.weight": {
        "dtype": dtype,
        "shape": [4, 4],
        "data_offsets": [64 * (2 * layer + at), 64 * (2 * layer + at) + 64],
    }
    for layer in range(2)
    for at, (role, dtype) in enumerate((("q", "F32"), ("v", "I32")))
}


def read(data: bytes) -> None:
    """Open the file; what opens is loaded, and must be of the shape it says."""
    whole = bool(data) and data[0] % 4 == 3
    content = data[1:] if whole else struct.pack("<Q", len(data)) + data + b"\0" * 256
    PATH.write_bytes(content)
    try:
        for matrix in open_checkpoint(PATH, split_fused=len(data) % 2 == 0).matrices:
            if matrix.shape[0] * matrix.shape[1] <= 2**16:
                assert matrix.load().shape == matrix.shape
    except AlphallocError:
        pass


if __name__ == "__main__":
    seeds = [json.dumps(TENSORS).encode(), json.dumps({**TENSORS, "__metadata__": {"format": "pt"}}).encode()]
    seeds.append(b"\x03" + struct.pack("<Q", len(seeds[0])) + seeds[0] + b"\0" * 256)
    run(read, seeds, mutate_json)
