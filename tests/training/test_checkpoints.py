"""Checkpoints: only whole ones count, and a kill or a full disk in the middle of a save loses nothing but that save."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from alphalloc.errors import OutputError
from alphalloc.training.checkpoints import (
    MARKER,
    complete_checkpoints,
    keep_newest,
    mark_complete,
    remove_incomplete,
)
from alphalloc.training.train import train


def written(root: Path, step: int) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 100)
    (folder / "inner" / "state").write_bytes(b"y" * 10)
    return folder


def steps(root: Path) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(root)]


def test_a_checkpoint_counts_once_it_is_marked(tmp_path: Path) -> None:
    for step in (8, 10, 9):
        mark_complete(written(tmp_path, step), {"seconds": step / 2})
    written(tmp_path, 11)
    (tmp_path / "checkpoint-best").mkdir()
    assert steps(tmp_path) == [8, 9, 10]
    assert complete_checkpoints(tmp_path)[-1].notes == {"seconds": 5.0}
    assert remove_incomplete(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10", "checkpoint-8", "checkpoint-9", "checkpoint-best"
    ]  # fmt: skip


@given(st.binary(max_size=99), st.sampled_from(["weights", "inner/state"]))
def test_a_file_of_another_size_or_a_broken_marker_does_not_count(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    root = tmp_path_factory.mktemp("c")
    folder = written(root, 1)
    mark_complete(folder, {})
    assert steps(root) == [1]
    if len(content) != (folder / name).stat().st_size:
        (folder / name).write_bytes(content)
        assert steps(root) == []
    (folder / MARKER).write_bytes(content)
    assert steps(root) == []


def test_the_oldest_go(tmp_path: Path) -> None:
    for step in (2, 4, 6, 100):
        mark_complete(written(tmp_path, step), {})
    keep_newest(tmp_path, 2)
    assert steps(tmp_path) == [6, 100]
    assert len(list(tmp_path.iterdir())) == 2


def in_child(work: Callable[[Any], None], *, killed: bool = False) -> str | None:
    """Run ``work`` in a forked process; return what it sends, or see it killed."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=work, args=(sender,))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(120) else None
    except EOFError:
        answer = None
    process.join(120)
    assert process.exitcode == (-signal.SIGKILL if killed else 0)
    return answer


def test_a_kill_in_the_middle_of_a_save_loses_only_that_save(recipe: Any, tmp_path: Path) -> None:
    texts = ["optim.steps=6", "run.save_every=2", "run.keep=1"]
    whole = train(recipe(*texts, output=str(tmp_path / "whole")))
    mine = recipe(*texts, output=str(tmp_path / "killed"))

    def die_while_saving(_: Any) -> None:
        save, folders = torch.save, set()

        def half(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            if "checkpoint-4" in str(path):
                folders.add(path)
                if len(folders) == 3:  # adapter and optimizer are there; this file is cut in the middle
                    save(value, path, *args, **kwargs)
                    os.truncate(path, os.path.getsize(path) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            save(value, path, *args, **kwargs)

        torch.save = half
        train(mine)

    in_child(die_while_saving, killed=True)
    root = tmp_path / "killed" / "checkpoints"
    assert (root / "checkpoint-4").is_dir()
    assert steps(root) == [2]
    result = train(mine, resume=True)
    assert result.resumed_from == 2
    first, second = (load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (whole, result))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert steps(root) == [6]


def test_a_full_disk_names_the_last_complete_checkpoint(recipe: Any, tmp_path: Path) -> None:
    mine = recipe("optim.steps=6", "run.save_every=2")

    def fill_the_disk(sender: Any) -> None:
        def limit(progress: Any) -> None:
            if progress.step == 3:  # from here on no file may grow beyond 4 kB: as ENOSPC, the write is refused
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

        try:
            train(mine, progress=limit)
        except OutputError as exc:
            sender.send(str(exc))

    message = in_child(fill_the_disk)
    last = Path(mine.output) / "checkpoints" / "checkpoint-2"
    assert message is not None
    assert f"The last complete checkpoint is {last}: resume once there is room" in message
    assert steps(last.parent) == [2]
    assert train(mine, resume=True).resumed_from == 2
