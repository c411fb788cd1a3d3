"""The law of untrusted files: whatever bytes change, a file is read or refused by name, soon, and never crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AlphallocError

STATE = {f"model.layers.{i}.{r}.weight": np.arange(64, dtype=np.float32).reshape(2, 32) for i in range(2) for r in "qk"}


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    for i in range(2):
        for role in ("attn_q", "attn_k"):
            packed = gguf.quants.quantize(STATE["model.layers.0.q.weight"], gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"blk.{i}.{role}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda path: save_file(STATE, path),
    "bin": lambda path: torch.save({name: torch.from_numpy(array) for name, array in STATE.items()}, path),
    "gguf": write_gguf,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_law_changed_bytes_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    WRITERS[suffix](path)
    whole = path.read_bytes()
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    @settings(max_examples=250, deadline=5000, derandomize=True)
    @given(changes=changes, keep=st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    def law(changes: list[tuple[int, int]], keep: int) -> None:
        content = bytearray(whole)
        for at, value in changes:
            content[at] = value
        path.write_bytes(content[:keep])
        try:
            matrices = open_checkpoint(path).matrices
        except AlphallocError:
            return
        for matrix in matrices:
            assert matrix.load().shape == matrix.shape

    law()


def test_many_names_take_no_quadratic_time(tmp_path: Path) -> None:
    """4,000 stacks of one block, or 10,000 matrices outside: seconds, not hours."""
    one = np.ones((1, 1), dtype=np.float32)
    stacks = {f"a{i}.layers.0.{role}": one for i in range(4_000) for role in "qk"}
    outside = {f"out{i}.table": one for i in range(10_000)} | {
        f"layers.{i}.{role}": one for i in range(2) for role in "qk"
    }
    for at, state in enumerate((stacks, outside)):
        save_file(state, tmp_path / f"{at}.safetensors")
        assert open_checkpoint(tmp_path / f"{at}.safetensors").matrices
