"""inspect: every tensor of the file once, from headers alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from alphalloc.checkpoint import open_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_table_lists_every_tensor(run: Run, tiny: Path) -> None:
    done = run("inspect", tiny)
    assert done.returncode == 0, done.stderr
    checkpoint = open_checkpoint(tiny)
    for matrix in checkpoint.matrices:
        line = next(line for line in done.stdout.splitlines() if matrix.name in line)
        shape = f"{matrix.shape[0]} x {matrix.shape[1]}"
        assert all(part in line for part in (shape, "F32", f"{matrix.nbytes:,}", str(matrix.layer), matrix.role, "yes"))
    for tensor in checkpoint.skipped:
        line = next(line for line in done.stdout.splitlines() if f" {tensor.name} " in line)
        assert f"no: {tensor.reason}" in line
    assert len(checkpoint.matrices) + len(checkpoint.skipped) == 14
    assert "safetensors; 8 matrices in 4 layers would be analysed (108.0 KiB), 6 tensors left out" in done.stdout


def test_json(run: Run, minilm: Path) -> None:
    value = json.loads(run("inspect", minilm, "--json").stdout)
    assert value["totals"]["num_layers"] == 6
    assert value["totals"]["num_matrices"] == len(value["matrices"]) == 36
    assert value["totals"]["num_skipped"] == len(value["skipped"])
    assert value["totals"]["nbytes"] == sum(matrix["nbytes"] for matrix in value["matrices"])
    assert value["model"]["fingerprint"] == open_checkpoint(minilm).fingerprint
    assert value["matrices"][0]["shape"] == [384, 384]


def test_filters(run: Run, tiny: Path) -> None:
    value = json.loads(run("inspect", tiny, "--include", "q_proj", "--embeddings", "--json").stdout)
    assert {matrix["role"] for matrix in value["matrices"]} == {"q_proj"}
    everything = json.loads(run("inspect", tiny, "--embeddings", "--json").stdout)
    assert {matrix["layer"] for matrix in everything["matrices"]} == {-1, 0, 1, 2, 3}
    assert everything["totals"]["num_layers"] == 4


def test_no_weights_are_read(run: Run, tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)  # all NaN
    (tmp_path / "nan.safetensors").write_bytes(data)
    assert json.loads(run("inspect", "nan.safetensors", "--json").stdout)["totals"]["num_matrices"] == 8
