"""A model minus its base: exact differences in every pairing of formats, and named errors where they do not pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from alphalloc.analysis import analyze
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import CheckpointError
from alphalloc.spectra import esd

State = Callable[..., dict[str, Any]]


def test_differences_are_exact_and_so_are_their_spectra(tmp_path: Path, llama_state: State) -> None:
    ours, theirs = llama_state(dtype=np.float16, seed=1), llama_state(dtype=ml_dtypes.bfloat16, seed=2)
    save_file(ours, tmp_path / "a.safetensors")
    save_file(theirs, tmp_path / "b.safetensors")
    for model, base in ((ours, theirs), (tmp_path / "a.safetensors", tmp_path / "b.safetensors")):
        checkpoint = open_checkpoint(model, base=base)
        assert "difference from that of" in checkpoint.notes[-1]
        assert checkpoint.fingerprint != open_checkpoint(model).fingerprint
        for matrix in checkpoint.matrices:
            expected = ours[matrix.name].astype(np.float64) - theirs[matrix.name].astype(np.float64)
            difference = matrix.load()
            assert difference.shape == expected.shape
            np.testing.assert_array_equal(np.asarray(difference), expected)
            np.testing.assert_array_equal(difference[2:5], expected[2:5])
            np.testing.assert_array_equal(esd(difference).eigs, esd(expected).eigs)
            assert not Path(matrix.source).is_file()  # so that no spectrum is kept under the model's own name


def test_analyze_takes_the_difference_and_never_a_kept_spectrum_of_the_model(
    tmp_path: Path, llama_state: State
) -> None:
    ours, theirs = llama_state(seed=1), llama_state(seed=2)
    for name, state in (("a", ours), ("b", theirs)):
        save_file(state, tmp_path / f"{name}.safetensors")
    plain = analyze(tmp_path / "a.safetensors", cache=tmp_path / "cache", estimator="xmin_median")
    tuned = open_checkpoint(tmp_path / "a.safetensors", base=tmp_path / "b.safetensors")
    assert plain.model.fingerprint != tuned.fingerprint
    found = {m.name: esd(m.load()).eigs[-1] for m in tuned.matrices}
    assert all(found[m.name] != pytest.approx(10 ** (m.log10_spectral_norm or 0)) for m in plain.matrices)


def test_formats_that_spell_names_differently_are_paired_by_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {(i, r): rng.standard_normal((4, 32)).astype(np.float32) for i in range(2) for r in "qk"}
    writer = gguf.GGUFWriter(str(tmp_path / "base.gguf"), "llama")
    for (layer, role), array in values.items():
        writer.add_tensor(f"blk.{layer}.attn_{role}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state = {f"model.layers.{i}.self_attn.{r}_proj.weight": array + 1 for (i, r), array in values.items()}
    for matrix in open_checkpoint(state, base=tmp_path / "base.gguf").matrices:
        np.testing.assert_allclose(np.asarray(matrix.load()), 1.0, atol=1e-6)


def test_what_does_not_pair_is_named(llama_state: State) -> None:
    state = llama_state()
    name = "model.layers.1.mlp.up_proj.weight"
    less = {key: value for key, value in state.items() if key != name}
    with pytest.raises(CheckpointError, match=r"1 of the matrices of state dict are missing.*up_proj"):
        open_checkpoint(state, base=less)
    with pytest.raises(CheckpointError, match=r"1 of the matrices of state dict are missing.*up_proj"):
        open_checkpoint(less, base=state)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: is 12 x 8 in the model and 3 x 8 in the base"):
        open_checkpoint(state, base=state | {name: state[name][:3]})
    assert open_checkpoint(state, base=less, exclude=["up_proj"]).matrices
