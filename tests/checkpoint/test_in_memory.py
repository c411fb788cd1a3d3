"""Modules and state dicts: values seen in place, nothing changed, torch not imported for numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import UnsupportedCheckpointError


def blocks(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = lambda: torch.nn.ModuleDict({"q": torch.nn.Linear(6, 4), "k": torch.nn.Linear(6, 4)})  # noqa: E731
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer(), layer()])}).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float32, "F32"), (torch.float64, "F64")],
)
def test_values_are_the_module_s_own(dtype: torch.dtype, spelled: str) -> None:
    model = blocks(dtype)
    checkpoint = open_checkpoint(model)
    assert checkpoint.model_id == checkpoint.architecture == "ModuleDict"
    assert checkpoint.files == ()
    assert len(checkpoint.matrices) == 4
    for matrix in checkpoint.matrices:
        values = matrix.load()
        assert (matrix.dtype, matrix.source, matrix.offset, matrix.nbytes) == (spelled, "memory", None, values.nbytes)
        expected = model.get_parameter(matrix.name).detach()
        np.testing.assert_array_equal(values.astype(np.float64), expected.double().numpy())
        assert not values.flags.writeable


def test_no_copy_is_made() -> None:
    model = blocks()
    matrix = open_checkpoint(model).matrices[0]
    with torch.no_grad():
        model.get_parameter(matrix.name).fill_(7.0)
    assert (matrix.load() == 7.0).all()


def test_a_transposed_view_is_read_as_it_is() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {f"layers.{i}.{r}.weight": (weight + i).t() for i in range(2) for r in ("q", "k")}
    matrix = open_checkpoint(state).matrices[0]
    assert matrix.shape == (4, 3)
    np.testing.assert_array_equal(matrix.load(), weight.T.numpy())


def test_bfloat16_arrays_of_numpy() -> None:
    state = {f"layers.{i}.{r}.weight": np.full((2, 2), 1.5, ml_dtypes.bfloat16) for i in range(2) for r in ("q", "k")}
    matrix = open_checkpoint(state).matrices[0]
    assert matrix.dtype == "BF16"
    assert matrix.load().dtype == ml_dtypes.bfloat16


def test_what_has_no_values_is_refused() -> None:
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(UnsupportedCheckpointError, match="no values"):
        open_checkpoint(model)
    sparse = {f"layers.{i}.q.weight": torch.eye(3).to_sparse() for i in range(2)}
    with pytest.raises(UnsupportedCheckpointError, match="sparse"):
        open_checkpoint(sparse)
    with pytest.raises(UnsupportedCheckpointError, match="no tensor in it"):
        open_checkpoint({"epoch": 3})


def test_embeddings_inside_blocks_are_known_by_class() -> None:
    layer = lambda: torch.nn.ModuleDict(  # noqa: E731
        {"table": torch.nn.Embedding(5, 4), "q": torch.nn.Linear(4, 4), "k": torch.nn.Linear(4, 4)}
    )
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer(), layer()])})
    checkpoint = open_checkpoint(model)
    assert {m.role for m in checkpoint.matrices} == {"q", "k"}
    assert {s.reason for s in checkpoint.skipped if len(s.shape) == 2} == {"embedding inside a block"}


def test_a_state_dict_of_numpy_needs_no_torch(llama_state: Callable[..., dict[str, Any]]) -> None:
    code = (
        "import sys, numpy\n"
        "from alphalloc.checkpoint import open_checkpoint\n"
        "state = {f'layers.{i}.{r}.weight': numpy.ones((2, 2)) for i in range(2) for r in 'qk'}\n"
        "assert len(open_checkpoint(state).matrices) == 4\n"
        "assert not {'torch', 'gguf', 'huggingface_hub', 'transformers', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
