"""Decides, from a pretrained model's weights alone, where LoRA adaptation capacity should go.

The public page::

    alphas = alphalloc.analyze("path-or-hub-id")        # ModelAlphas: a power-law exponent for every weight matrix
    schedule = alphalloc.allocate(alphas, budget=160)   # ExpertSchedule: LoRA experts per layer

Deeper rooms, each with a page of its own: ``alphalloc.spectra``, ``alphalloc.fits``, ``alphalloc.checkpoint``,
``alphalloc.allocation``, ``alphalloc.peft`` (needs the extra of that name), ``alphalloc.errors``. Names resolve on
first use, so that ``import alphalloc`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alphalloc.allocation import Budget, ExpertSchedule, allocate
    from alphalloc.alphas import LayerAlpha, MatrixAlpha, ModelAlphas
    from alphalloc.analysis import Progress, SpectraCache, analyze

_HOMES = {
    "analyze": "alphalloc.analysis",
    "Progress": "alphalloc.analysis",
    "SpectraCache": "alphalloc.analysis",
    "ModelAlphas": "alphalloc.alphas",
    "LayerAlpha": "alphalloc.alphas",
    "MatrixAlpha": "alphalloc.alphas",
    "allocate": "alphalloc.allocation",
    "Budget": "alphalloc.allocation",
    "ExpertSchedule": "alphalloc.allocation",
}
_ROOMS = ("allocation", "checkpoint", "errors", "fits", "peft", "spectra")

__all__ = [
    "Budget",
    "ExpertSchedule",
    "LayerAlpha",
    "MatrixAlpha",
    "ModelAlphas",
    "Progress",
    "SpectraCache",
    "allocate",
    "analyze",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"alphalloc.{name}")
    if name == "__version__":
        from alphalloc.documents import package_version

        return package_version()
    raise AttributeError(f"module 'alphalloc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
