"""Numbers beside the JSONL files: a resumed run goes on in the same curves, each step once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alphalloc.training.sinks import open_sinks


def curve(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")]


@pytest.mark.parametrize("saved_at", [0, 2])
def test_tensorboard_shows_each_step_of_a_resumed_run_once(saved_at: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for begin, end, value in ((0, 4, 1.0), (saved_at, 6, 2.0)):  # killed after step 4, resumed at the checkpoint
        [sink] = open_sinks(["tensorboard"], tmp_path, {}, begin=begin)
        for step in range(begin + 1, end + 1):
            sink.write({"train/loss": value}, step)
        sink.close()
    assert curve(tmp_path) == [(step, 1.0 if step <= saved_at else 2.0) for step in range(1, 7)]


def test_a_resumed_run_keeps_its_id_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []  # a stand-in: the library is in no extra, and a run of it starts a server
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **fields: begun.append(fields)))
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        open_sinks(["wandb"], folder, {})
    first, again, other = (fields["id"] for fields in begun)
    assert first == again != other
    assert len(first) == 16
    assert {fields["resume"] for fields in begun} == {"allow"}
