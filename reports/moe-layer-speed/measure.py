"""Medians, spreads and paired ratios; what the machine is."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of measurements of one round: drift of the machine cancels."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def environment() -> dict[str, Any]:
    """Machine, versions and what the linear algebra libraries chose, without which no figure means anything."""
    models = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "libraries": [
            {key: info.get(key) for key in ("user_api", "internal_api", "version", "num_threads", "architecture")}
            for info in threadpool_info()
        ],
        "mkl": torch.backends.mkl.is_available(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
