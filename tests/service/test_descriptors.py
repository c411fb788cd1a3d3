"""A server has descriptors for as many connections as it lets in."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alphalloc_service.server import LIMIT_CONCURRENCY, MAX_DESCRIPTORS
from running_service import RunningService


@pytest.fixture
def usual_limit() -> Iterator[None]:
    """What a login shell has, for what is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors(pid: int) -> tuple[int, int]:
    """The soft and the hard limit of a process."""
    found = re.search(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    assert found
    return int(found[1]), int(found[2])


def children(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one process", "two"])
def test_the_usual_limit_of_descriptors_is_raised(tmp_path: Path, usual_limit: None, options: tuple[str, ...]) -> None:
    assert MAX_DESCRIPTORS > LIMIT_CONCURRENCY
    with RunningService(tmp_path, "--no-worker", *options) as service:
        assert service.request("GET", "/healthz")[0].status == 200
        answering = children(service.process.pid) if options else [service.process.pid]
        deadline = time.monotonic() + 30  # one of two may start later
        while not all(soft == min(hard, MAX_DESCRIPTORS) for soft, hard in map(descriptors, answering)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
