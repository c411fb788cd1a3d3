"""``alphalloc cache`` and the plan on the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((96, 64)) for i in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "alphalloc", *arguments]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "home")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)

    return run


def test_info_and_prune(run, tmp_path: Path):
    folder = tmp_path / "home" / "alphalloc"
    assert run("cache", "info").stdout == f"{folder}: 0 spectra, 0 B of at most 2.0 GiB; hashes of 0 files\n"
    first = run("analyze", "model.safetensors")
    assert "4 matrices in" in first.stderr
    info = json.loads(run("cache", "info", "--json").stdout)
    assert (info["num_spectra"], info["num_files"], info["folder"]) == (4, 1, str(folder))
    assert "4 of them cached" in run("analyze", "model.safetensors", "--estimator", "ks").stderr
    assert run("cache", "prune").stdout == "deleted 0 spectra, 0 B\n"
    assert run("cache", "prune", "--max", f"{info['nbytes'] // 2}").stdout.startswith("deleted 2 spectra")
    assert run("cache", "prune", "--max", "0").stdout.startswith("deleted 2 spectra")
    assert json.loads(run("cache", "info", "--json").stdout)["num_files"] == 0
    refused = run("cache", "prune", "--max", "much")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "expected memory like '8GiB'" in refused.stderr


def test_inspect_and_analyze_show_one_plan(run):
    inspected = run("inspect", "model.safetensors", "--memory", "50MiB", "--workers", "1").stdout
    analyzed = run("analyze", "model.safetensors", "--memory", "50MiB", "--workers", "1", "--no-cache").stderr
    plans = [line.partition("about") for text in (inspected, analyzed) for line in text.splitlines() if "plan:" in line]
    assert [plan[0] for plan in plans] == ["plan: 4 matrices in 1 batch, 1 at once; "] * 2
    assert all("(budget 50.0 MiB)" in plan[2] for plan in plans)
    values = json.loads(run("inspect", "model.safetensors", "--json").stdout)["plan"]
    assert values["batches"][0]["num_matrices"] == 4
    assert values["peak_bytes"] <= values["budget_bytes"]
    assert values["estimated_seconds"] > 0


def test_a_budget_too_small_is_said_with_the_bytes(run):
    refused = run("analyze", "model.safetensors", "--memory", "10KB")
    assert refused.returncode == 2
    assert "needs 212992 bytes of memory, the budget is 10000 (4 of 4 matrices need more)" in refused.stderr
    listed = run("inspect", "model.safetensors", "--memory", "10KB")
    assert listed.returncode == 0
    assert "no plan: model.layers.0.mlp.up_proj.weight: 96 x 64 of F64 needs 212992 bytes" in listed.stdout
    wrong = run("inspect", "missing", "--memory", "much")
    assert (wrong.returncode, "8GiB" in wrong.stderr) == (2, True)
