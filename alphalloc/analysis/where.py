"""Where matrices are computed: what was asked for of backend, device and precision, checked against each other."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from alphalloc.errors import AnalysisError, DeviceError, MissingExtraError
from alphalloc.spectra import FarmsSettings
from alphalloc.spectra.eigenvalues import has_torch

Backend = Literal["auto", "local", "batched", "ray"]
Precision = Literal["full", "fast"]
BACKENDS = ("auto", "local", "batched", "ray")
_DEVICE = re.compile(r"auto|cpu|(?:cuda|mps)(?::[0-9]+)?")
# Device files of NVIDIA and AMD cards and of WSL. Without one torch cannot see a card, and need not be asked.
_CARDS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class Where:
    """The backend, the device ("cpu", "cuda" for every card, "cuda:N"), the precision, and what was chosen instead."""

    backend: Literal["local", "batched", "ray"] = "local"
    device: str = "cpu"
    precision: Precision = "full"
    ray_address: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def device_type(self) -> str:
        """What kind of device it is: "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    @property
    def variant(self) -> str:
        """What tells spectra made here from those of the local backend: last digits, nothing more. "" for none."""
        if self.backend == "local" or (self.backend == "ray" and self.device == "cpu"):
            return ""
        return f"batched {self.device_type} {torch_release()}"

    def settings(self) -> dict[str, Any]:
        """Return what an alphas document says about it: nothing but a precision that is not the full one."""
        return {"precision": self.precision} if self.precision != "full" else {}


def choose(backend: str, device: str, precision: str, ray_address: str | None, farms: FarmsSettings | None) -> Where:
    """Return where to compute.

    ``device`` "auto" is CUDA where torch sees a card and the CPU elsewhere, and always the CPU for FARMS, for the local
    backend and on Ray; "mps" is the CPU, with a note. ``backend`` "auto" is batched on CUDA and local on the CPU.

    Raises DeviceError for a device that is not there or that the backend has no use for, MissingExtraError for batches
    without torch (on Ray it is the workers that need it), AnalysisError for names that do not exist and for
    contradictions.
    """
    if backend not in BACKENDS:
        raise AnalysisError(f"expected backend 'auto', 'local', 'batched' or 'ray', found {backend!r}")
    if precision not in ("full", "fast"):
        raise AnalysisError(f"expected precision 'full' or 'fast', found {precision!r}")
    if ray_address is not None and backend != "ray":
        raise AnalysisError("a Ray address was given without backend='ray'; give both or neither")
    chosen, notes = _device(backend, device, farms)
    name: Any = backend if backend != "auto" else "batched" if chosen != "cpu" else "local"
    _refuse_contradictions(name, chosen, farms)
    if name == "batched" and not has_torch():
        raise MissingExtraError("the batched backend needs torch: pip install 'alphalloc[torch]'")
    if precision == "fast" and (name == "local" or (name == "ray" and chosen == "cpu")):
        raise AnalysisError("precision 'fast' belongs to batches; use a CUDA device or backend='batched'")
    return Where(name, chosen, precision, ray_address, notes)  # type: ignore[arg-type]  # checked above


def _device(backend: str, device: str, farms: FarmsSettings | None) -> tuple[str, tuple[str, ...]]:
    if not _DEVICE.fullmatch(device):
        raise DeviceError(f"expected device 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', found {device!r}")
    if device.startswith("mps"):
        return "cpu", ("MPS has no float64, which spectra need; the CPU was used",)
    if device == "auto":
        able = backend in ("auto", "batched") and farms is None
        return ("cuda" if able and sees_cuda() else "cpu"), ()
    if device.startswith("cuda") and backend != "ray" and not sees_cuda():
        raise DeviceError(f"expected a CUDA card for device {device!r}, torch sees none; use device='cpu'")
    index = device.partition(":")[2]
    if index and backend != "ray" and int(index) >= (count := _count_cuda()):
        raise DeviceError(f"expected a CUDA card for device {device!r}, torch sees {count} (cuda:0 is the first)")
    return device, ()


def _refuse_contradictions(backend: str, device: str, farms: FarmsSettings | None) -> None:
    if backend == "local" and device != "cpu":
        raise DeviceError(f"backend 'local' computes on the CPU, found device {device!r}; use backend='batched'")
    if backend == "ray" and ":" in device:
        raise DeviceError(f"Ray gives every task a card of its own, found device {device!r}; use device='cuda'")
    if farms is not None and (backend == "batched" or device != "cpu"):
        raise AnalysisError("FARMS windows are computed on the CPU; use backend 'local' or 'ray' with device='cpu'")


def torch_release() -> str:
    """Return what decides the last digits of a batch on a card, as far as it is known here: torch's release."""
    try:
        return f"torch {version('torch')}"
    except PackageNotFoundError:
        return "torch none"


def _count_cuda() -> int:
    import torch

    return torch.cuda.device_count()


def sees_cuda(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether torch can compute on a card of this machine; torch is imported only where there may be one."""
    if sys.modules.get("torch") is None:
        may_be = sys.platform == "win32" or any(glob(pattern) for pattern in _CARDS)
        if not may_be or environment.get("CUDA_VISIBLE_DEVICES") == "" or not has_torch():
            return False
    import torch

    return torch.cuda.is_available()
