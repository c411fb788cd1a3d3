"""Disks that fail now and then (fiu-run): what was acknowledged is there, the file is sound, and writing goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from alphalloc_service.store import Store
from databases import new_url

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))

# Two writes of a hundred fail, and one read of two hundred.
FAULTS = {"pwrite": 0.02, "fsync": 0.02, "fdatasync": 0.02, "pread": 0.005}

WRITER = """
import sys
from alphalloc_service.store import AllocationRow, Store
from alphalloc.errors import StorageError

refused = 0
store = None
for number in range(int(sys.argv[2])):
    try:
        if store is None:
            store = Store.open(sys.argv[1])
        store.put_allocations([AllocationRow(f"al_{number}", b"x" * 3000, {})])
        analysis = store.submit(f"k{number}", {"model": {"path": "/m"}}, max_queued=10**6).analysis
        print(number, analysis.id, flush=True)
    except StorageError:
        refused += 1
print("refused", refused)
"""


@pytest.mark.skipif(not LONG, reason="run by `make test-reliability`")
def test_nothing_acknowledged_is_lost_on_a_disk_that_fails_now_and_then(tmp_path):
    fiu = shutil.which("fiu-run")
    assert fiu, "the long form needs fiu-run: apt-get install fiu-utils"
    url = new_url("sqlite", tmp_path)
    faults = [
        part
        for name, probability in FAULTS.items()
        for part in ("-c", f"enable_random name=posix/io/{_group(name)}/{name},probability={probability}")
    ]
    command = [fiu, "-x", *faults, sys.executable, "-c", WRITER, url, "3000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    refused = int(last.removeprefix("refused "))
    assert refused > 20, "no faults happened"
    assert len(lines) + refused == 3000
    store = Store.open(url)
    for line in lines:
        number, id = line.split()
        assert store.allocation(f"al_{number}") is not None
        assert store.analysis(id) is not None
    assert store.check() == []
    store.close()


def _group(name: str) -> str:
    return "sync" if name in ("fsync", "fdatasync") else "rw"
