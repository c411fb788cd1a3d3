"""Two sets of alphas side by side, WeightWatcher's CSV among them; ranks against scipy."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given

import alphalloc
from alphalloc.analysis.compare import Scores, compare_alphas, ranks, read_weightwatcher, spearman
from alphalloc.analysis.estimators import compare_estimators
from alphalloc.errors import DocumentError
from alphalloc.fits import FITS

numbers = st.lists(st.one_of(st.integers(0, 5).map(float), st.floats(-1e6, 1e6)), min_size=2, max_size=40)


def weights(seed: int = 0, prefix: str = "model.") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}layers.{layer}.{role}.weight": torch.randn(shape, generator=generator) ** (1 + layer % 2)
        for layer in range(4)
        for role, shape in {"self_attn.q_proj": (32, 32), "mlp.up_proj": (64, 32)}.items()
    }


def scores(seed: int = 0, prefix: str = "model.", **options) -> Scores:
    return Scores.of(alphalloc.analyze(weights(seed, prefix), cache=False, **options))


def given_scores(label: str, alphas: dict[str, float | None]) -> Scores:
    return Scores(label, "hand", alphas, {name: ("", int(name.split(".")[1])) for name in alphas})


def test_differences_by_hand():
    first = given_scores("a", {"h.0.q": 2.0, "h.0.k": 4.0, "h.1.q": 3.0, "h.1.k": None, "h.2.q": 9.0})
    second = given_scores("b", {"h.0.q": 2.5, "h.0.k": 3.0, "h.1.q": 3.0, "h.1.k": 2.0, "h.3.q": 1.0})
    found = compare_alphas(first, second)
    assert [(pair.name, pair.difference) for pair in found.matrices] == [
        ("h.0.q", 0.5),
        ("h.0.k", -1.0),
        ("h.1.q", 0.0),
    ]
    assert [(pair.name, pair.first, pair.second) for pair in found.layers] == [("0", 3.0, 2.75), ("1", 3.0, 3.0)]
    assert [pair.name for pair in found.moved] == ["h.0.k", "h.0.q", "h.1.q"]
    assert found.mean_difference == 0.5
    assert found.matrix_correlation == pytest.approx(np.sqrt(0.75))
    assert found.layer_correlation is None  # the first side ties
    assert found.only_first == ("h.1.k", "h.2.q")
    assert found.only_second == ("h.1.k", "h.3.q")


def test_a_model_agrees_with_itself():
    found = compare_alphas(scores(), scores())
    assert found.mean_difference == 0
    assert (found.matrix_correlation, found.layer_correlation) == (1.0, 1.0)
    assert len(found.matrices) == 8
    assert found.only_first == found.only_second == ()


def test_names_with_and_without_a_prefix_are_joined():
    bare, wrapped = scores(prefix=""), scores(prefix="base_model.model.")
    found = compare_alphas(bare, wrapped)
    assert len(found.matrices) == 8
    assert found.mean_difference == 0
    assert compare_alphas(wrapped, bare).mean_difference == 0


def test_an_ending_that_two_matrices_share_joins_nothing():
    first = given_scores("a", {"x.0.q": 2.0, "y.0.q": 3.0, "y.1.q": 5.0})
    second = given_scores("b", {"z.0.q": 2.0, "z.1.q": 5.0})
    assert [pair.name for pair in compare_alphas(first, second).matrices] == ["y.1.q"]


def test_nothing_in_common():
    with pytest.raises(DocumentError, match=r"no matrix in common; their first names are 'x\.0\.q', 'y\.0\.k'"):
        compare_alphas(given_scores("a", {"x.0.q": 2.0}), given_scores("b", {"y.0.k": 2.0}))


def test_weightwatchers_csv(tmp_path: Path):
    file = tmp_path / "details.csv"
    file.write_text(
        ",layer_id,name,D,alpha,longname\n"
        "0,2,q_proj,0.1,2.5,layers.0.self_attn.q_proj\n"
        "1,3,up_proj,0.1,-1.0,layers.0.mlp.up_proj\n"
        "2,4,q_proj,0.1,3.5,layers.1.self_attn.q_proj\n"
    )
    theirs = read_weightwatcher(file)
    assert theirs.alphas == {
        "layers.0.self_attn.q_proj": 2.5,
        "layers.0.mlp.up_proj": None,
        "layers.1.self_attn.q_proj": 3.5,
    }
    found = compare_alphas(scores(estimator="ks"), theirs)
    assert [pair.second for pair in found.layers] == [2.5, 3.5]
    assert "layers.0.mlp.up_proj" in found.only_second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "columns of WeightWatcher's details"),
        (b"", "columns of WeightWatcher's details"),
        (b"longname,alpha\nq,two\n", "expected a number in column 'alpha', found 'two'"),
        (b"\xff\xfe\x00longname", "cannot be read as CSV"),
    ],
)
def test_a_csv_that_is_none(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_weightwatcher(tmp_path / "x.csv")


def test_a_csv_that_is_missing(tmp_path):
    with pytest.raises(DocumentError, match="cannot be read"):
        read_weightwatcher(tmp_path / "none.csv")


@given(values=numbers)
def test_ranks_are_scipys(values):
    assert ranks(values) == list(scipy.stats.rankdata(values))


@given(values=numbers, seed=st.integers(0, 2**32 - 1))
def test_the_rank_correlation_is_scipys(values, seed):
    other = list(np.random.default_rng(seed).permutation(values) // 2)
    found = spearman(values, other)
    if len(set(values)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(values, other).statistic, abs=1e-12)
    assert spearman(values[:1], other[:1]) is None


def test_all_estimators_from_one_reading(monkeypatch):
    module = sys.modules["alphalloc.analysis.measure"]
    reductions = []
    exact = module.esd
    monkeypatch.setattr(module, "esd", lambda weight: reductions.append(1) or exact(weight))
    views = compare_estimators(weights(), lambda alphas: alphalloc.allocate(alphas, 20), cache=False)
    assert len(reductions) == 8
    assert [view.estimator for view in views] == list(FITS)
    for view in views:
        alone = alphalloc.analyze(weights(), estimator=view.estimator, cache=False)
        assert view.alphas == alone
        assert view.schedule == alphalloc.allocate(alone, 20)
        assert view.problem is None


def test_an_estimator_without_a_schedule_says_why(tmp_path):
    tensors = weights() | {
        f"model.layers.0.{role}.weight": torch.eye(32) for role in ("self_attn.q_proj", "mlp.up_proj")
    }
    views = compare_estimators(
        tensors, lambda alphas: alphalloc.allocate(alphas, 20), cache=tmp_path, estimators=["ks", "xmin_median"]
    )
    assert [view.schedule for view in views] == [None, None]
    assert "layer 0" in views[0].problem
