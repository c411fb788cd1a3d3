"""The same alphas whichever extras are installed: above 2048 torch takes the eigenvalues, without it numpy does."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphalloc.fits import FITS

SIDE = 2064  # beyond spectra.eigenvalues.NUMPY_MAX_SIDE
EXTRAS = ("torch", "gguf", "pandas", "fastapi", "uvicorn", "peft", "transformers", "weightwatcher", "powerlaw")

SCRIPT = """
import json, sys
blocked = sys.argv[2].split(",") if sys.argv[2] else []
sys.modules.update(dict.fromkeys(blocked))
import alphalloc
from alphalloc.analysis.estimators import compare_estimators
views = compare_estimators(sys.argv[1], lambda alphas: alphalloc.allocate(alphas, 4), cache=False, stability=True)
assert not [name for name in blocked if sys.modules.get(name)]
fields = ("alpha", "xmin", "ks_distance", "alpha_low", "alpha_high", "mp_edge", "entropy", "stable_rank")
print(json.dumps({
    "torch": "torch" in sys.modules and sys.modules["torch"] is not None,
    "numbers": {v.estimator: [[getattr(m, f) for f in fields] for m in v.alphas.matrices] for v in views},
}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("extras") / "model.safetensors"
    tensors = {
        "model.layers.0.up_proj.weight": rng.standard_normal((SIDE, SIDE + 8), dtype=np.float32),
        "model.layers.0.k_proj.weight": rng.standard_normal((96, 200), dtype=np.float32),
    }
    save_file(tensors, path)
    return path


@cache
def answers(path: Path, blocked: str) -> dict:
    command = [sys.executable, "-c", SCRIPT, str(path), blocked]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("blocked", ["torch", ",".join(EXTRAS)])
def test_no_extra_changes_an_alpha(model, blocked):
    everything, without = answers(model, ""), answers(model, blocked)
    assert everything["torch"]  # the two did go different ways
    assert not without["torch"]
    for estimator in FITS:
        for first, second in zip(everything["numbers"][estimator], without["numbers"][estimator], strict=True):
            assert second == pytest.approx(first, rel=1e-9), estimator
