"""The options of `analyze` that say how far alphas can be trusted; `compare` and `crosscheck`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import alphalloc
from alphalloc.analysis.crosscheck import Answer, CrosscheckedMatrix, Verdict
from alphalloc.cli import main
from alphalloc.fits import FITS, PowerLawFit


@pytest.fixture
def model(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{layer}.{role}.weight": torch.randn(shape, generator=generator) ** (1 + layer % 2)
        for layer in range(3)
        for role, shape in {"self_attn.q_proj": (40, 40), "mlp.up_proj": (80, 40)}.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_trust_is_shown_and_saved(model, tmp_path, capsys):
    saved = tmp_path / "alphas.json"
    code, out, _ = run(capsys, "analyze", model, "--stability", "--gof", "--randomize", "-q", "-o", str(saved))
    assert code == 0
    for word in ("band", "widest", "spikes", "p < 0.1", "softrank", "from noise"):
        assert word in out
    matrix = alphalloc.ModelAlphas.load(saved).matrices[0]
    assert matrix.alpha_low <= matrix.alpha <= matrix.alpha_high
    assert 0 < matrix.gof_p_value <= 1
    assert set(matrix.likelihood_ratios) == {"lognormal", "exponential", "truncated_power_law"}
    assert matrix.rand_distance is not None


def test_columns_that_were_not_asked_for_are_not_shown(model, capsys):
    _, out, _ = run(capsys, "analyze", model, "--stability", "-q")
    assert "band" in out
    assert "p < 0.1" not in out
    assert "softrank" not in out
    _, plain, _ = run(capsys, "analyze", model, "-q")
    assert "band" not in plain


def test_farms_is_named_in_the_document(model, capsys):
    code, out, _ = run(
        capsys, "analyze", model, "--sampling", "farms", "--farms-rows", "16", "--farms-windows", "3", "--json", "-q"
    )
    assert code == 0
    settings = json.loads(out)["alphas"]["analysis"]["settings"]
    assert settings["sampling"] == "farms"
    assert settings["farms"] == {"rows": 16, "ratio": 1.0, "windows": 3}


def test_all_estimators_side_by_side(model, capsys):
    code, out, _ = run(capsys, "analyze", model, "--estimators", "all", "--experts", "15", "-q")
    assert code == 0
    assert all(name in out for name in FITS)
    code, out, _ = run(capsys, "analyze", model, "--estimators", "ks,xmin_median", "--experts", "15", "--json", "-q")
    found = json.loads(out)
    assert list(found) == ["ks", "xmin_median"]
    alone = alphalloc.analyze(model, estimator="ks", cache=False)
    assert [layer["alpha"] for layer in found["ks"]["layers"]] == list(alone.per_layer)
    assert found["ks"]["num_experts"] == list(alphalloc.allocate(alone, 15).num_experts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--farms-rows", "8"], "--farms-rows belongs to --sampling farms"),
        (["--sampling", "farms", "--farms-ratio", "0"], "positive ratio"),
        (["--sampling", "farms", "--gof"], "windows of FARMS overlap"),
        (["--estimators", "all", "--estimator", "ks"], "drop one of them"),
        (["--estimators", "all", "--paper", "alphalora"], "drop one of them"),
        (["--estimators", "al"], "no estimator 'al'"),
        (["--estimators", "all", "-o", "x.json"], "give --output with one --estimator"),
        (["--estimators", "ks", "--hill-fraction", "0.1"], "belongs to --estimator hill_fraction"),
    ],
)
def test_contradictions_are_bad_input(model, capsys, arguments, message):
    code, _, err = run(capsys, "analyze", model, "-q", *arguments)
    assert code == 2
    assert message in err


def test_two_files_a_model_and_a_csv_are_compared(model, tmp_path, capsys):
    first = tmp_path / "robust.json"
    alphalloc.analyze(model, cache=False).save(first)
    code, out, _ = run(capsys, "compare", str(first), model, "--estimator", "ks", "-q")
    assert code == 0
    assert "6 matrices in both" in out
    assert "rank correlation" in out
    theirs = tmp_path / "details.csv"
    theirs.write_text("longname,alpha\nmodel.layers.0.mlp.up_proj,2.5\nmodel.layers.1.mlp.up_proj,-1\n")
    code, out, err = run(capsys, "compare", str(first), str(theirs), "--json")
    found = json.loads(out)
    assert [pair["second"] for pair in found["matrices"]] == [2.5]
    assert "5 matrices have an alpha in A alone, 1 in B alone" in err
    code, out, _ = run(capsys, "compare", str(first), str(first), "--top", "0", "-q")
    assert "moved most" not in out


def test_what_cannot_be_compared_is_bad_input(model, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("longname,alpha\nelsewhere,2.5\n")
    code, _, err = run(capsys, "compare", model, str(tmp_path / "other.csv"), "-q")
    assert code == 2
    assert "no matrix in common" in err
    assert run(capsys, "compare", str(tmp_path / "none.json"), model)[0] == 2


def test_crosscheck_prints_agreement(model, capsys):
    code, out, _ = run(capsys, "crosscheck", model, "--include", "*layers.0.*", "-q")
    assert code == 0
    assert "powerlaw: 2 of 2 agree to 1e-6" in out


def test_crosscheck_prints_json_and_reasons(model, capsys, monkeypatch):
    """One process of WeightWatcher is enough for this file: here its answers are given by hand."""
    ours = PowerLawFit("ks", 2.0, 1.0, 0.1, 10, 0.3)
    matrices = tuple(
        CrosscheckedMatrix(f"m{i}", i, ours, answer, verdict, Answer(2.0, 1.0, 0.1), Verdict(True, None))
        for i, (answer, verdict) in enumerate(
            [
                (Answer(2.5, 1.0, 0.1), Verdict(False, "it drops 3 eigenvalues")),
                (Answer(None, None, None, "failed"), Verdict(False, None)),
            ]
        )
    )
    monkeypatch.setattr("alphalloc.analysis.crosscheck.crosscheck", lambda *args, **options: matrices)
    _, out, _ = run(capsys, "crosscheck", model, "-q")
    assert "WeightWatcher: it drops 3 eigenvalues" in out
    assert "WeightWatcher: unexplained" in out
    assert "WeightWatcher: 0 of 2 agree to 1e-6, 1 differ for a known reason, 1 unexplained" in out
    _, out, _ = run(capsys, "crosscheck", model, "--json", "-q")
    assert json.loads(out)["matrices"][1]["weightwatcher"]["problem"] == "failed"
