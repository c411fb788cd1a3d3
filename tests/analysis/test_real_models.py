"""The promises on real weights: all-MiniLM-L6-v2 (float32) and SmolLM2-135M (Q4_1, dequantised)."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import alphalloc
from alphalloc.checkpoint import open_checkpoint
from alphalloc.fits import FITS
from alphalloc.spectra import ESD, esd
from alphalloc.spectra.esd import EPS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "layer_alphas.json").read_text())


@pytest.fixture(params=["minilm", "smollm2"], scope="module")
def model(request, minilm_file, smollm2_file) -> Path:
    return {"minilm": minilm_file, "smollm2": smollm2_file}[request.param]


@cache
def spectra(path: Path) -> dict[str, tuple[ESD, np.ndarray]]:
    """Every block matrix: our spectrum and the squared singular values of an fp64 SVD."""
    found = {}
    for matrix in open_checkpoint(path).matrices:
        weight = matrix.load().astype(np.float64)
        found[matrix.name] = esd(weight), np.sort(np.linalg.svd(weight, compute_uv=False) ** 2)
    return found


def test_eigenvalues_against_an_fp64_svd(model):
    assert len(spectra(model)) in (36, 210)
    for name, (ours, expected) in spectra(model).items():
        padded = np.concatenate([np.zeros(ours.num_zero), ours.eigs])
        error = np.abs(padded - expected)
        assert error.max() <= len(padded) * EPS * expected[-1], name
        large = expected > 1e-9 * expected[-1]
        assert (error[large] <= 1e-7 * expected[large]).all(), name


@pytest.mark.parametrize("estimator", FITS)
def test_alphas_against_an_fp64_svd(model, estimator):
    for name, (ours, expected) in spectra(model).items():
        kept = expected[len(expected) - len(ours.eigs) :]
        theirs = FITS[estimator](kept)
        assert FITS[estimator](ours.eigs).alpha == pytest.approx(theirs.alpha, rel=1e-9), name


def test_noise_law_of_the_robust_estimator(model):
    """0.1 % iid noise on the singular values, 20 draws: max - min <= 3 % of alpha."""
    fit = FITS["xmin_peak_robust"]
    rng = np.random.default_rng(0)
    for name, (ours, _) in spectra(model).items():
        alpha = fit(ours.eigs).alpha
        noisy = [fit(ours.eigs * (1 + 1e-3 * rng.standard_normal(len(ours.eigs))) ** 2).alpha for _ in range(20)]
        assert max(noisy) - min(noisy) <= 0.03 * alpha, name


@pytest.mark.parametrize("estimator", FITS)
def test_layer_alphas_are_pinned(model, estimator, minilm_file, tmp_path_factory):
    cache_folder = tmp_path_factory.getbasetemp() / f"spectra-{model.stem}"
    alphas = alphalloc.analyze(model, estimator=estimator, cache=cache_folder)
    expected = GOLDEN["minilm" if model == minilm_file else "smollm2"][estimator]
    assert list(alphas.per_layer) == pytest.approx(expected, rel=1e-6)


WEIGHTWATCHER = """
import json, sys, warnings
import weightwatcher
from safetensors.numpy import load_file
import torch
tensors = {name: torch.from_numpy(value) for name, value in load_file(sys.argv[1]).items() if name in sys.argv[2:]}
frame = weightwatcher.WeightWatcher(model=tensors).analyze()
print("RESULT " + json.dumps({row.longname: [row.alpha, row.xmin, row.D] for row in frame.itertuples()}))
"""


def test_ks_agrees_with_weightwatcher_where_its_filter_drops_nothing(minilm_file):
    """WeightWatcher drops eigenvalues <= 1e-5; on MiniLM the twelve FFN matrices have none."""
    whole = {
        name: ours for name, (ours, _) in spectra(minilm_file).items() if ours.eigs[0] > 1e-5 and not ours.num_zero
    }
    assert len(whole) == 12
    command = [sys.executable, "-c", WEIGHTWATCHER, str(minilm_file), *whole]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
    assert len(theirs) == 12
    for name, ours in whole.items():
        alpha, xmin, distance = next(value for key, value in theirs.items() if key in name)
        fit = FITS["ks"](ours.eigs)
        assert fit.alpha == pytest.approx(alpha, rel=1e-6), name
        assert fit.xmin == pytest.approx(xmin, rel=1e-6), name
        assert fit.ks_distance == pytest.approx(distance, abs=1e-6), name


def test_the_file_is_read_exactly(minilm_file):
    tensors = load_file(minilm_file)
    for matrix in open_checkpoint(minilm_file).matrices:
        assert np.array_equal(matrix.load(), tensors[matrix.name])
