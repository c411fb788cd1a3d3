"""``analyze``: the one place where reading meets numerics."""

from alphalloc.analysis.analyze import analyze
from alphalloc.analysis.progress import Progress

__all__ = ["Progress", "analyze"]
