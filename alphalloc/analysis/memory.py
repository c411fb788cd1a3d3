"""How much memory an analysis may use: as asked for, or measured."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alphalloc.errors import AnalysisError

# Chosen here: other processes and this one's libraries grow too, and the kernel needs a page cache to read through.
SHARE_OF_FREE = 0.8
UNKNOWN_FREE_BYTES = 4 * 2**30  # where nothing can be measured; chosen here, most machines have more

_UNITS = {"": 1, "B": 1} | {f"{letter}{i}B": (1024 if i else 1000) ** power
                            for power, letter in enumerate("KMGT", start=1) for i in ("", "I")}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def memory_budget(memory: int | str | None = None) -> int:
    """Return the bytes that matrices may take: ``memory`` as asked for, else 80 % of what is free now.

    ``memory`` is a number of bytes or a text such as "8GiB", "8 GB" or "512MiB" (GB is 10^9, GiB 2^30). AnalysisError
    for anything else.
    """
    if memory is None:
        return int(SHARE_OF_FREE * free_memory())
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise AnalysisError(f"expected memory in bytes or as text like '8GiB', found {memory!r}")
    size = _parse(memory) if isinstance(memory, str) else memory
    if size < 1:
        raise AnalysisError(f"expected a positive amount of memory, found {memory!r}")
    return size


def _parse(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise AnalysisError(f"expected memory like '8GiB', '8GB' or '512MiB', found {text[:50]!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes this process can still take: the machine's available memory, or its control group's if less.

    Linux: MemAvailable of /proc/meminfo and, for every enclosing control group (version 2 or 1), its limit less its
    use, file cache that can be dropped counted as free. Elsewhere half of the physical memory.
    """
    found = [value for value in (_meminfo(root), *_group_limits(root)) if value is not None]
    if found:
        return max(min(found), 0)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return UNKNOWN_FREE_BYTES


def _meminfo(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s*([0-9]+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def _group_limits(root: Path) -> list[int | None]:
    """What is free in each control group around this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[int | None] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = Path(path.strip("/"))
        if ".." not in inner.parts:
            found += [_group_free(base / folder, *names) for folder in (inner, *inner.parents)]
    return found


def _group_free(folder: Path, limit_name: str, used_name: str, cache_key: str) -> int | None:
    limit, used = _number(folder / limit_name), _number(folder / used_name)
    if limit is None or used is None:  # "max" is no number: no limit here
        return None
    try:
        match = re.search(rf"^{cache_key} ([0-9]+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return limit - used + (int(match[1]) if match else 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
