"""The wheel holds everything: both packages, their types, what the service serves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"alphalloc": "alphalloc", "alphalloc_service": "service"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources and install it into a folder of its own."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    for name in ("alphalloc", "service"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    python = [sys.executable, "-m"]
    run([*python, "build", "--wheel", "--no-isolation", "--outdir", str(work), str(source)], work)
    (wheel,) = work.glob("*.whl")
    run([*python, "pip", "install", "--quiet", "--no-deps", "--target", str(work / "site"), str(wheel)], work)
    return work / "site"


def run(command: list[str], folder: Path, **environment: str) -> str:
    import os

    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for package, folder in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("__init__.py"))
    ]
    assert sorted(listed) == sorted(found)


def test_every_file_of_the_sources_is_installed(installed):
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / package / path.relative_to(ROOT / folder)).exists(), path
    assert (installed / "alphalloc" / "py.typed").exists()


def test_the_installed_package_allocates_and_serves(installed):
    code = """
import alphalloc, alphalloc_service, os, sys
from pathlib import Path
for package in (alphalloc, alphalloc_service):
    assert Path(package.__file__).is_relative_to(sys.argv[1])
from alphalloc_service.app import create_app
from alphalloc_service.store import upgrade
from starlette.testclient import TestClient
upgrade(os.environ["ALPHALLOC_DATABASE_URL"])
question = {"source": {"alphas": [2.0, 3.0]}, "budget": {"total": 4}}
with TestClient(create_app(), base_url="http://127.0.0.1") as client:
    page = client.get("/")
    answer = client.post("/v1/allocations", json={**question, "store": False})
assert page.status_code == 200, page.text
assert answer.status_code == 200, answer.text
assert answer.json()["id"] == alphalloc.allocate([2.0, 3.0], budget=4).id
"""
    database = f"sqlite:///{installed.parent}/service.db"
    run(
        [sys.executable, "-c", code, str(installed)],
        installed.parent,
        PYTHONPATH=str(installed),
        ALPHALLOC_DATABASE_URL=database,
    )
