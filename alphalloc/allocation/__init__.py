"""Scores and a budget in, a schedule out. Needs no numpy and no torch: answers come in milliseconds on any machine."""

from alphalloc.allocation.allocate import DEFAULT_BETA, PAPERS, allocate
from alphalloc.allocation.budget import DEFAULT_EXPERTS_PER_LAYER, Budget
from alphalloc.allocation.rounding import ROUNDINGS
from alphalloc.allocation.rules import RULES, Rule
from alphalloc.allocation.schedule import (
    AnalysisRef,
    Bounds,
    BudgetRef,
    CreatedBy,
    ExpertSchedule,
    LayerAllocation,
    LayerRef,
    LayerScores,
    ModelRef,
    RuleRef,
    Totals,
    schedule_schema,
)

__all__ = [
    "DEFAULT_BETA",
    "DEFAULT_EXPERTS_PER_LAYER",
    "PAPERS",
    "ROUNDINGS",
    "RULES",
    "AnalysisRef",
    "Bounds",
    "Budget",
    "BudgetRef",
    "CreatedBy",
    "ExpertSchedule",
    "LayerAllocation",
    "LayerRef",
    "LayerScores",
    "ModelRef",
    "Rule",
    "RuleRef",
    "Totals",
    "allocate",
    "schedule_schema",
]
