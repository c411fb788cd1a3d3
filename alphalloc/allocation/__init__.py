"""Scores and a budget in, a schedule out. Needs no numpy and no torch: answers come in milliseconds on any machine."""

from alphalloc.allocation.allocate import PAPERS, allocate
from alphalloc.allocation.budget import DEFAULT_EXPERTS_PER_LAYER, Adapter, Budget
from alphalloc.allocation.compare import ScheduleDiff, check_against_model, diff_schedules
from alphalloc.allocation.constraints import Constraints
from alphalloc.allocation.json_schema import schedule_schema
from alphalloc.allocation.parameters import ParameterCount, count_parameters, equal_lora_ranks
from alphalloc.allocation.ranks import allocate_ranks
from alphalloc.allocation.rounding import ROUNDINGS
from alphalloc.allocation.rules import RULES, Rule
from alphalloc.allocation.schedule import (
    AdapterRef,
    AnalysisRef,
    Bounds,
    BudgetRef,
    Confidence,
    CreatedBy,
    ExpertSchedule,
    LayerAllocation,
    LayerRef,
    LayerScores,
    ModelRef,
    ModuleAllocation,
    RankBounds,
    RuleRef,
    SignalRef,
    Totals,
)
from alphalloc.allocation.score_files import read_scores
from alphalloc.allocation.settings import DEFAULT_BETA
from alphalloc.allocation.shapes import ModuleShape, ModuleShapes
from alphalloc.allocation.signals import METRICS, SignalScores, external_scores, metric_scores
from alphalloc.allocation.slots import Slot

__all__ = [
    "DEFAULT_BETA",
    "DEFAULT_EXPERTS_PER_LAYER",
    "METRICS",
    "PAPERS",
    "ROUNDINGS",
    "RULES",
    "Adapter",
    "AdapterRef",
    "AnalysisRef",
    "Bounds",
    "Budget",
    "BudgetRef",
    "Confidence",
    "Constraints",
    "CreatedBy",
    "ExpertSchedule",
    "LayerAllocation",
    "LayerRef",
    "LayerScores",
    "ModelRef",
    "ModuleAllocation",
    "ModuleShape",
    "ModuleShapes",
    "ParameterCount",
    "RankBounds",
    "Rule",
    "RuleRef",
    "ScheduleDiff",
    "SignalRef",
    "SignalScores",
    "Slot",
    "Totals",
    "allocate",
    "allocate_ranks",
    "check_against_model",
    "count_parameters",
    "diff_schedules",
    "equal_lora_ranks",
    "external_scores",
    "metric_scores",
    "read_scores",
    "schedule_schema",
]
