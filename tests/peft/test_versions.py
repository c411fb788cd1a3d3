"""The core of the method under other releases of PEFT, each first on the path of a process of its own.

0.21.0 runs with every test; 0.20.0 and 0.18.1, which axolotl, ms-swift and LLaMA-Factory pin, in the long form; 0.18.1
also with the transformers 4 of its time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "peft-versions"
# What stands in for the environment's own packages. transformers 4.57 wants the hub client and datasets of its time.
ENVIRONMENTS = {
    "0.21.0": ("peft==0.21.0",),
    "0.20.0": ("peft==0.20.0",),
    "0.18.1": ("peft==0.18.1",),
    "0.18.1-transformers-4": (
        "peft==0.18.1",
        "transformers==4.57.6",
        "huggingface_hub==0.36.0",
        "tokenizers==0.22.1",
        "datasets==3.6.0",
    ),
}


def installed(name: str) -> Path:
    """A folder with the packages of ``name`` and nothing else; made once."""
    folder = CACHE / name
    done = folder / "installed"
    if not done.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "--upgrade"]
        run = subprocess.run([*pip, *ENVIRONMENTS[name]], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        done.touch()
    return folder


@pytest.mark.parametrize(
    "name", ["0.21.0", *(pytest.param(name, marks=pytest.mark.long) for name in list(ENVIRONMENTS)[1:])]
)
def test_the_core_holds_under_another_peft(name: str, tmp_path: Path) -> None:
    root = HERE.parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(installed(name)), str(root)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, str(HERE / "core_subset.py"), name.split("-")[0], str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\nok ") == 11
