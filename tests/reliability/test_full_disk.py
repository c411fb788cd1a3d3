"""A full disk is a StorageError, nothing acknowledged is lost, and everything goes on when there is room again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from alphalloc_service.settings import Settings
from alphalloc_service.store import AllocationRow, AllocationWriter, Store
from alphalloc_service.worker import run_worker
from databases import new_url
from kill_loop import request_for, undisturbed, write_model
from small_disk import fill, small_disk

from alphalloc.errors import StorageError

DOCUMENT = b"x" * 3000


def write_until_refused(writer: AllocationWriter, start: int) -> list[str]:
    """Put allocations until one is refused; return the ids of those that were acknowledged."""
    acknowledged = []
    for number in range(start, start + 10_000):
        error = writer.put(AllocationRow(f"al_{number}", DOCUMENT, {})).exception()
        if error is not None:
            assert isinstance(error, StorageError)
            return acknowledged
        acknowledged.append(f"al_{number}")
    raise AssertionError("the disk was never full")


def until_refused(write: Callable[[], object]) -> None:
    """Write until that is refused; whatever room is left in the log is soon used up."""
    for _ in range(1000):
        write()


def test_a_full_disk_is_a_storage_error_and_recovers_by_itself(tmp_path):
    with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
        if disk is None:
            pytest.skip("mounting a small disk needs root; the next test bounds the size of files instead")
        store = Store.open(new_url("sqlite", disk))
        writer = AllocationWriter(store)
        try:
            queued = store.submit("a", {"model": {"path": "/m"}}).analysis.id
            filler = fill(disk)
            acknowledged = write_until_refused(writer, 0)
            request = {"model": {"path": "/m"}}
            for write in (store.ping, lambda: store.submit("b", request), lambda: store.claim("w", 9)):
                for _ in range(3):
                    with pytest.raises(StorageError, match="cannot be read or written now"):
                        until_refused(write)
            assert store.analysis(queued).status in ("queued", "running")  # reading goes on
            assert all(store.allocation(id).document == DOCUMENT for id in acknowledged)
            filler.unlink()
            store.ping()
            acknowledged += write_until_refused(writer, 10_000)  # and again, until the disk is full of schedules
            assert len(acknowledged) > 50
            assert all(store.allocation(id).document == DOCUMENT for id in acknowledged)
            assert store.check() == []
        finally:
            writer.close()
            store.close()


def test_a_worker_waits_for_room_and_then_writes_its_result(tmp_path):
    model = write_model(tmp_path / "model.safetensors", 0, matrices=6, shape=(60, 90))
    with small_disk(tmp_path / "disk", 2**20) as disk:
        if disk is None:
            pytest.skip("mounting a small disk needs root")
        url = new_url("sqlite", disk)
        store = Store.open(url)
        id = store.submit("a", request_for(model)).analysis.id
        settings = Settings(database_url=url, lease_seconds=30, metrics=False)
        stop = threading.Event()
        worker = threading.Thread(target=run_worker, args=(settings,), kwargs={"stop": stop})
        worker.start()
        try:
            while store.analysis(id).status == "queued":
                time.sleep(0.01)
            filler = fill(disk)
            time.sleep(3)  # the job ends meanwhile and finds no room
            assert not store.analysis(id).finished
            filler.unlink()
            give_up = time.monotonic() + 60
            while not store.analysis(id).finished and time.monotonic() < give_up:
                time.sleep(0.05)
            assert store.analysis(id).status == "succeeded"
            assert store.analysis(id).attempt == 1
            assert store.result(id) == undisturbed(model)
        finally:
            stop.set()
            worker.join()
            store.close()


LIMITED = """
import resource, signal, sys
from alphalloc_service.store import AllocationRow, Store
from alphalloc.errors import StorageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a file that grows too large is an error of the write
store = Store.open(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

def write(start):
    for number in range(start, start + 5000):
        try:
            store.put_allocations([AllocationRow(f"al_{number}", b"x" * 3000, {})])
        except StorageError:
            return number - start
    raise AssertionError("never refused")

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
first = write(0)
for _ in range(3):
    assert write(10_000) == 0
assert store.allocation(f"al_{first - 1}") is not None
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.ping()
assert store.put_allocations([AllocationRow("al_last", b"", {})]) == [True]
assert all(store.allocation(f"al_{number}") is not None for number in range(first))
assert store.check() == []
print(first)
"""


def test_files_that_may_not_grow_are_a_storage_error_and_recover(tmp_path):
    """The same without root: SQLite's writes fail in the middle, as on a full disk."""
    command = [sys.executable, "-c", LIMITED, new_url("sqlite", tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
