"""Where matrices are computed. A backend takes a function and its tasks and yields results as they finish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alphalloc.backends.local import run_local

__all__ = ["run_local"]


def __getattr__(name: str) -> Any:
    """Resolve on first use: ``batched`` runs from a plain checkout, ``local`` needs threadpoolctl."""
    if name == "run_local":
        from alphalloc.backends.local import run_local

        return run_local
    raise AttributeError(f"module 'alphalloc.backends' has no attribute {name!r}")
