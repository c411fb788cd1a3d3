"""Peak memory of one run in a process that may do several."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch


def reset_peak() -> None:
    """Begin a new measurement: CUDA's counters, and on Linux the kernel's mark of this process's largest size."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: then the mark is the process's whole life
        return


def peak_bytes() -> int:
    """Return the most memory since ``reset_peak``: allocated on CUDA where it is used, else resident on the host."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
