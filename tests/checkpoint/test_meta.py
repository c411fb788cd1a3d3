"""Meta's layout, written by the test in 1, 2 and 4 ranks: values and spectra are those of the whole matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError
from alphalloc.spectra import esd

DIM, HEADS, GROUPS, INNER, WORDS = 32, 8, 4, 48, 40
PARAMS = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": GROUPS, "vocab_size": -1, "norm_eps": 1e-5}
ROLES = {  # Meta's name -> (role, shape, the axis along which ranks split it)
    "attention.wq": ("q_proj", (DIM, DIM), 0), "attention.wk": ("k_proj", (GROUPS * 4, DIM), 0),
    "attention.wv": ("v_proj", (GROUPS * 4, DIM), 0), "attention.wo": ("o_proj", (DIM, DIM), 1),
    "feed_forward.w1": ("gate_proj", (INNER, DIM), 0), "feed_forward.w3": ("up_proj", (INNER, DIM), 0),
    "feed_forward.w2": ("down_proj", (DIM, INNER), 1),
}  # fmt: skip


def whole(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """The state dict before it is split."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"layers.{i}.{name}.weight": torch.randn(shape, generator=generator).to(dtype)
        for i in range(2) for name, (_, shape, _) in ROLES.items()
    }  # fmt: skip
    for name in ("tok_embeddings.weight", "output.weight"):
        state[name] = torch.randn(WORDS, DIM, generator=generator).to(dtype)
    norms = {f"layers.{i}.{part}_norm.weight": torch.ones(DIM, dtype=dtype) for i in range(2) for part in ("ffn", "b")}
    return state | norms | {"norm.weight": torch.ones(DIM, dtype=dtype), "rope.freqs": torch.ones(2)}


def axis_of(name: str, embedding_axis: int) -> int:
    if name.startswith(("tok_embeddings", "output")):
        return embedding_axis if name.startswith("tok") else 0
    return ROLES[name.split(".", 2)[2].removesuffix(".weight")][2]


def write(
    folder: Path, state: dict[str, torch.Tensor], ranks: int, embedding_axis: int = 1, params: Any = PARAMS
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        part = {
            name: tensor if tensor.ndim < 2 else tensor.chunk(ranks, axis_of(name, embedding_axis))[rank].clone()
            for name, tensor in state.items()
        }
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    if params is not None:
        (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "embedding_axis"), [(1, 1), (2, 1), (4, 1), (4, 0)])
def test_ranks_are_put_together_to_the_whole_matrices(
    tmp_path: Path, ranks: int, embedding_axis: int, dtype: torch.dtype
) -> None:
    state = whole(dtype)
    checkpoint = open_checkpoint(write(tmp_path, state, ranks, embedding_axis), embeddings=True)
    assert (checkpoint.format, len(checkpoint.files)) == ("torch", ranks)
    places = {(m.layer, m.role): m for m in checkpoint.matrices}
    assert set(places) == {(i, role) for i in range(2) for role, _, _ in ROLES.values()} | {
        (-1, "embed_tokens"), (-1, "lm_head"),
    }  # fmt: skip
    assert places[1, "down_proj"].module == "model.layers.1.mlp.down_proj"
    for matrix in checkpoint.matrices:
        expected = state[matrix.name]
        assert matrix.shape == tuple(expected.shape)
        assert matrix.nbytes == expected.numel() * 2
        np.testing.assert_array_equal(matrix.load().astype(np.float32), expected.float().numpy())
        found, reference = esd(matrix.load()), np.linalg.svd(expected.double().numpy(), compute_uv=False)[::-1] ** 2
        bound = max(min(matrix.shape), 8) * 2.2e-16 * reference[-1]
        assert np.abs(found.eigs - reference[found.num_zero :]).max() <= bound


def test_without_params_the_norm_gives_the_width(tmp_path: Path) -> None:
    state = whole()
    for axis in (0, 1):
        checkpoint = open_checkpoint(write(tmp_path / str(axis), state, 2, axis, params=None), embeddings=True)
        embedding = next(m for m in checkpoint.matrices if m.role == "embed_tokens")
        np.testing.assert_array_equal(embedding.load(), state["tok_embeddings.weight"].numpy())


def test_tall_parts_are_read_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphalloc.checkpoint.buffers.SLAB_BYTES", 100)
    state = whole()
    for matrix in open_checkpoint(write(tmp_path, state, 2)).matrices:
        np.testing.assert_array_equal(matrix.load(), state[matrix.name].numpy())


def test_safetensors_are_preferred_and_the_choice_is_noted(tmp_path: Path) -> None:
    write(tmp_path, whole(), 2)
    names = {f"model.layers.{i}.self_attn.{p}_proj.weight": torch.ones(4, 4) for i in range(2) for p in "qk"}
    save_file(names, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert {m.name for m in checkpoint.matrices} == set(names)
    assert checkpoint.notes == (f"{tmp_path} also holds consolidated weights; the safetensors ones are read",)


def test_mistrals_single_file_has_the_same_names(tmp_path: Path) -> None:
    state = whole()
    save_file(state, tmp_path / "consolidated.safetensors")
    for model in (tmp_path, tmp_path / "consolidated.safetensors"):
        checkpoint = open_checkpoint(model)
        assert checkpoint.format == "safetensors"
        assert {m.role for m in checkpoint.matrices} == {role for role, _, _ in ROLES.values()}


def test_a_single_rank_may_be_given_by_its_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", whole(), 1)
    assert len(open_checkpoint(folder / "consolidated.00.pth").matrices) == 14
    folder = write(tmp_path / "two", whole(), 2)
    with pytest.raises(UnsupportedCheckpointError, match=r"is one rank of a model, consolidated\.01\.pth another"):
        open_checkpoint(folder / "consolidated.00.pth")


def broken(change: Any) -> Any:
    def make(folder: Path) -> None:
        write(folder, whole(), 2)
        path = folder / "consolidated.01.pth"
        part = torch.load(path, weights_only=True)
        change(part)
        torch.save(part, path)

    return make


def three_of_four(folder: Path) -> None:
    write(folder, whole(), 4)
    (folder / "consolidated.03.pth").unlink()


def unknown(folder: Path) -> None:
    for rank in range(2):
        torch.save({"layers.0.attention.wo2.weight": torch.ones(4, 4)}, folder / f"consolidated.{rank:02}.pth")


def gap(folder: Path) -> None:
    write(folder, whole(), 4)
    (folder / "consolidated.01.pth").unlink()


# name -> (how to make the folder, error class, message)
BROKEN: dict[str, tuple[Any, type[Exception], str]] = {
    "a tensor is missing": (
        broken(lambda part: part.pop("layers.0.attention.wq.weight")), CorruptCheckpointError,
        r"same tensors in every rank, 'layers\.0\.attention\.wq\.weight'",
    ),
    "another width": (
        broken(lambda part: part.update({"layers.0.attention.wq.weight": torch.ones(16, 8, dtype=torch.float16)})),
        CorruptCheckpointError, r"parts of 'layers\.0\.attention\.wq\.weight' do not go together",
    ),
    "another dtype": (
        broken(lambda part: part.update({"layers.0.attention.wq.weight": torch.ones(16, DIM)})),
        CorruptCheckpointError, "do not go together: .*of F16, .*of F32",
    ),
    "the last rank is missing": (three_of_four, CorruptCheckpointError, "a rank is missing"),
    "a rank in between is missing": (gap, CorruptCheckpointError, "rank 1 is missing"),
    "an unknown matrix": (
        unknown, UnsupportedCheckpointError,
        r"not known how 'layers\.0\.attention\.wo2\.weight' \[4, 4\] was split",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_ranks_that_do_not_go_together_are_refused(tmp_path: Path, case: str) -> None:
    make, error, message = BROKEN[case]
    make(tmp_path)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)
