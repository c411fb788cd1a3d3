"""Reading by slabs: the bytes of numpy's own slices, plain and transposed; a file that changed is noticed."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

from alphalloc.analysis.slabs import SlabReader, TransposedSlabs, by_slabs, can_read_by_slabs
from alphalloc.checkpoint import open_checkpoint
from alphalloc.checkpoint.buffers import FileSlice
from alphalloc.errors import CorruptCheckpointError
from alphalloc.spectra import esd

DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, tuple[np.ndarray, SlabReader]]:
    folder = tmp_path_factory.mktemp("slabs")
    found = {}
    for name, dtype in DTYPES.items():
        values = np.random.default_rng(0).standard_normal((17, 23)).astype(dtype)
        path = folder / name
        path.write_bytes(b"header" + values.tobytes())
        found[name] = values, SlabReader(FileSlice(str(path), 6, (17, 23), name, 6 + values.nbytes))
    return found


bounds = st.tuples(st.integers(0, 25), st.integers(0, 25)).map(lambda pair: slice(*sorted(pair)))


@given(dtype=st.sampled_from(list(DTYPES)), rows=bounds, cols=bounds)
def test_slices_are_numpys(written, dtype, rows, cols):
    values, reader = written[dtype]
    for ours, theirs in ((reader, values), (TransposedSlabs(reader), values.T)):
        assert np.array_equal(ours[rows, cols], theirs[rows, cols])
        assert np.array_equal(ours[rows], theirs[rows])
        assert ours.shape == theirs.shape


def test_a_file_that_changed_since_is_refused(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    reader = SlabReader(FileSlice(str(path), 0, (5, 5), "F32", 100))
    reader[0:2]
    path.write_bytes(bytes(99))
    with pytest.raises(CorruptCheckpointError, match="had 100 bytes .* has 99 now"):
        reader[0:2]


def test_a_transposed_matrix_of_a_real_checkpoint(tmp_path: Path):
    rng = np.random.default_rng(0)
    tensors = {f"h.{i}.mlp.c_fc.weight": rng.standard_normal((24, 96)).astype(np.float32) for i in range(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    for matrix in open_checkpoint(tmp_path).matrices:
        assert can_read_by_slabs(matrix)
        assert by_slabs(matrix).shape == matrix.shape
        assert np.array_equal(esd(by_slabs(matrix)).eigs, esd(matrix.load()).eigs)


def test_packed_weights_and_weights_in_memory_cannot(smollm2_file):
    packed = open_checkpoint(smollm2_file).matrices[0]
    held = open_checkpoint({f"layers.{i}.weight": np.eye(20) for i in range(2)}).matrices[0]
    for matrix in (packed, held):
        assert not can_read_by_slabs(matrix)
        with pytest.raises(TypeError, match="cannot be read by slabs"):
            by_slabs(matrix)
