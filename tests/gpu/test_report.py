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


def run(*arguments: str) -> str:
    command = [sys.executable, "-c", PLAIN, str(REPORT / "run.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


@pytest.fixture
def script(monkeypatch):
    """The report's script as a module."""
    monkeypatch.syspath_prepend(str(REPORT))
    for name in ("run", "page", "routes", "shapes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    yield run
    for name in ("run", "page", "routes", "shapes"):
        sys.modules.pop(name, None)


def test_one_card_is_measured(script, monkeypatch):
    assert script.Bench("cuda", True, 1, 1.0).device == torch.device("cuda", 0)
    asked = []
    monkeypatch.setattr(script, "run_batched", lambda weights, **options: asked.append(options["device"]) or [])
    for device in ("cuda", "cpu"):
        script.ours(script.Bench(device, True, 1, 1.0), [])()
    assert asked == ["cuda:0", "cpu"]


def test_a_failing_route_costs_neither_the_others_nor_what_was_measured_before(script, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(script, "to_band", broken)
    bench = script.Bench("cpu", True, 1, 60.0)
    assert script.try_routes(bench, 16, 2)["parts"] == {}
    monkeypatch.setattr(script, "try_routes", broken)
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--device", "cpu", "--tiny", "--rounds", "1", "--output", str(tmp_path)]
    )
    with pytest.raises(RuntimeError, match="illegal memory access"):
        script.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"bounds", "ours", "plain_loop", "alphalora", "floors", "stages"} <= set(results)
    assert results["alphalora"]["rounds"] == 2
    assert "Time by stage" in (tmp_path / "README.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without a card")
def test_without_cuda_a_measured_report_stays(tmp_path):
    run("--output", str(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == {"measured": False}
    measured = '{"measured": true, "ours": {}}'
    (tmp_path / "results.json").write_text(measured)
    (tmp_path / "README.md").write_text("figures")
    assert "the measured report in" in run("--output", str(tmp_path))
    assert (tmp_path / "results.json").read_text() == measured
    assert (tmp_path / "README.md").read_text() == "figures"


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
