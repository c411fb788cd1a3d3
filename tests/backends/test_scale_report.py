"""The arithmetic of the scale report by hand, and its script with a reader's own numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[2] / "reports" / "scale"


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(REPORT))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    import model

    yield model
    sys.modules.pop("model", None)


def test_one_model_on_one_machine_by_hand(model):
    two = model.Model("two", ((10, 20, 2), (30, 10, 1)), bytes_each=2.0)
    assert (two.matrices, two.parameters, two.stored_bytes) == (3, 700, 1400)
    assert two.gram_flop == 2 * 100 * 20 + 100 * 30
    assert two.eigen_flop == pytest.approx(3 * 4000 / 3)
    assert two.largest.shapes == ((30, 10, 1),)
    box = model.Machine(
        "box", 1, 2, gram=1000, eigen=500, fit=1, storage=100, network=9, store=9, copy=None, price=3600
    )
    stages = model.stage_seconds(two, box)
    assert stages["disk"] == 14
    assert (stages["Gram"], stages["eigenvalues"], stages["fit"]) == pytest.approx((3.5, 4, 1.5))
    assert stages["largest matrix"] == pytest.approx(3 + 4000 / 3 / 500)
    assert model.total(two, box) == (14, "disk", 14)
    seconds, why, cost = model.total(two, replace(box, storage=1e9))
    assert (seconds, why, cost) == (pytest.approx(9), "eigenvalues", pytest.approx(9))
    four = replace(box, hosts=4, network=10, store=35)
    assert model.stage_seconds(two, four)["network"] == 40  # the store gives less than four times ten
    assert model.total(two, four)[2] == pytest.approx(4 * 40)
    cards = replace(four, copy=1e9, start=5)
    assert model.stage_seconds(two, cards)["starts"] == 10  # two processes a card, one after the other
    assert model.total(two, cards)[:2] == (50, "network")
    assert model.total(two, replace(cards, start=50))[:2] == (140, "starts")
    many = replace(two, shapes=((10, 20, 512 * 8 * 3 + 1),))
    assert model.stage_seconds(many, cards)["starts"] == 4 * 5
    assert "starts" not in model.stage_seconds(two, replace(cards, hosts=1))  # one host's cards need no Ray


def test_published_sizes(model):
    assert [m.matrices for m in model.MODELS[:3]] == [224, 560, 882]
    assert [round(m.parameters / 1e9) for m in model.MODELS] == [6, 68, 402, 1024]


def test_readers_put_in_their_own_numbers(tmp_path):
    flags = ["--core-gram", "4e10", "--core-eigen", "2e10", "--core-fit", "1e-3", "--disk", "1e6"]
    command = [sys.executable, str(REPORT / "run.py"), *flags, "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    results = json.loads((tmp_path / "results.json").read_text())
    one_host = [row for row in results["totals"] if "8 x 8" not in row["machine"]]
    assert {row["why"] for row in one_host} == {"disk"}
    assert "1e+06 bytes/s (changed by a flag)" in (tmp_path / "README.md").read_text()
