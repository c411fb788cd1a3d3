"""``analyze``: the one place where reading meets numerics."""

from alphalloc.analysis.analyze import analyze
from alphalloc.analysis.cache import SpectraCache
from alphalloc.analysis.plan import Plan, make_plan, measure_speed
from alphalloc.analysis.progress import Progress

__all__ = ["Plan", "Progress", "SpectraCache", "analyze", "make_plan", "measure_speed"]
