"""The memory budget: texts, /proc/meminfo and control groups as files, this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphalloc.analysis.memory import SHARE_OF_FREE, free_memory, memory_budget
from alphalloc.errors import AnalysisError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("512", 512),
        ("3 B", 3),
        ("2TiB", 2**41),
        ("7KB", 7000),
        (123, 123),
    ],
)
def test_sizes(text, size):
    assert memory_budget(text) == size


@pytest.mark.parametrize("text", ["", "lots", "8Gb/s", "-1GiB", "8GiBs", "1e9", "nan", True, 1.5, [1]])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(AnalysisError, match="expected memory"):
        memory_budget(text)


@pytest.mark.parametrize("nothing", [0, -5, "0GiB"])
def test_no_memory_is_refused(nothing):
    with pytest.raises(AnalysisError, match="positive"):
        memory_budget(nothing)


def machine(root: Path, files: dict[str, str]) -> Path:
    """A file tree that stands for / ."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    5000 kB\nSwapTotal: 1 kB\n"


def test_without_control_groups_it_is_what_the_kernel_calls_available(tmp_path):
    assert free_memory(machine(tmp_path, {"proc/meminfo": MEMINFO})) == 5000 * 1024


def test_a_control_group_of_version_2_may_leave_less(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.current": "77\n",
        "sys/fs/cgroup/outer/memory.max": "4000\n",
        "sys/fs/cgroup/outer/memory.current": "3000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 600\nactive_file 5\n",
    }
    assert free_memory(machine(tmp_path, files)) == 4000 - 3000 + 600


def test_a_control_group_of_version_1_may_leave_less(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "500\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "500\n",
    }
    assert free_memory(machine(tmp_path, files)) == 1500


def test_an_exhausted_group_leaves_nothing_not_less(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "10\n",
        "sys/fs/cgroup/memory.current": "20\n",
    }
    assert free_memory(machine(tmp_path, files)) == 0


def test_where_nothing_is_told_there_is_still_an_answer(tmp_path):
    assert free_memory(tmp_path) > 2**20


def test_this_machine():
    assert 2**20 < free_memory() < 2**50
    assert memory_budget() == pytest.approx(SHARE_OF_FREE * free_memory(), rel=0.5)
