"""The GPU report's script on the CPU, so that it does not rot: every section on tiny shapes, from a plain checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "gpu-speed"
# What a GPU box with torch, numpy and scipy alone does not have.
BLOCKED = ("pydantic", "threadpoolctl", "ml_dtypes", "typer", "rich", "huggingface_hub", "platformdirs", "safetensors")
PLAIN = f"""
import runpy, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str) -> None:
    command = [sys.executable, "-c", PLAIN, str(REPORT / "run.py"), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")


def test_every_section_runs_from_a_plain_checkout(tmp_path):
    run("--device", "cpu", "--tiny", "--rounds", "1", "--output", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["matrices"] == 14
    assert results["left_out"] == []
    assert set(results["stages"]) == {"gram", "eigenvalues", "checks", "fit", "read", "copy"}
    routes = results["routes"]["routes"]
    assert set(routes) - {"cupy"} <= {name for name, row in routes.items() if row.get("error_over_bound", 2) <= 1}
    page = (tmp_path / "README.md").read_text()
    assert "these figures say nothing" in page
    for section in ("Bounds measured", "Time by stage", "Eigenvalue routes", "Other models"):
        assert section in page


def test_without_cuda_it_says_not_measured_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(REPORT))
    monkeypatch.delitem(sys.modules, "page", raising=False)
    import page

    text = page.page({"measured": False})
    sys.modules.pop("page")
    assert text.count("not measured") > 20
    assert "met |" not in text
    if not json.loads((REPORT / "results.json").read_text())["measured"]:
        assert (REPORT / "README.md").read_text() == text


@pytest.mark.parametrize("side", [3, 17, 40])
def test_the_routes_reduce_without_loss(side, monkeypatch):
    monkeypatch.syspath_prepend(str(REPORT))
    import routes

    weights = torch.randn(3, side, side + 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grams = weights @ weights.mT
    grams[2] = torch.eye(side)
    expected = torch.linalg.eigvalsh(grams)
    width = max(2, min(8, side // 2))
    band = routes.to_band(grams, width)
    assert band.tril(-width - 1).abs().max() == 0
    for diagonal, off in (routes.one_stage(grams, block=8), routes.chase(band, width)):
        found = routes.bisect(diagonal, off)
        assert ((found - expected).abs() <= 8 * side * 2.2e-16 * expected[:, -1:]).all()
