"""GET /v1/methods: everything that can be chosen by name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from alphalloc.allocation import PAPERS, RULES

from ..answers import ExportFormat, Method, Methods, Preset, RuleMethod
from ..security import require
from .exports import MEDIA_TYPES

router = APIRouter(prefix="/v1", tags=["methods"])

_NO_PARAMS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

# What a default value cannot tell of a rule's setting.
PARAMETERS: dict[str, dict[str, Any]] = {
    "beta": {"description": "exponent of the weights alpha ** beta"},
    "eps": {"description": "half the width of the linear map: weights run from 1 - eps to 1 + eps"},
    "temperature": {"description": "the weights are exp(score / temperature)"},
    "counts": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "description": "experts, one number a layer",
    },
    "pattern": {
        "type": "array",
        "items": {"type": "number", "exclusiveMinimum": 0},
        "minItems": 1,
        "description": "weights over the depth, stretched to the number of layers",
    },
}

ROUNDING_SUMMARIES = {
    "largest_remainder": "floors, then one expert each by the largest remainder",
    "min1_largest_remainder": "the minimum to every layer first, then the largest remainder of what is left",
    "reference": "AlphaLoRA's released code, bit for bit: its correction goes to one layer (arXiv 2410.10054)",
}

# Listed by hand: the estimators live beside the numerics, which this process never imports. A test compares the names.
ESTIMATOR_SUMMARIES = {
    "xmin_peak_robust": "tail from the mode of a density estimate of the log spectrum; the default",
    "xmin_peak": "tail near the peak of the histogram of the log spectrum, with AlphaLoRA's intended bounds",
    "xmin_peak_reference": "AlphaLoRA's estimator as released, its log10 slip included (arXiv 2410.10054)",
    "ks": "tail with the smallest Kolmogorov-Smirnov distance over all starts (arXiv 0706.1062)",
    "xmin_median": "Hill's estimator on the upper half of the spectrum, as in TempBalance (arXiv 2312.00359)",
    "hill_fraction": "Hill's estimator on a chosen upper share of the spectrum",
}

_HILL_PARAMS: dict[str, Any] = {
    "type": "object",
    "properties": {"hill_fraction": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.25}},
    "additionalProperties": False,
}


@router.get("/methods", summary="What can be chosen by name", dependencies=[Depends(require("read"))])
async def methods() -> Methods:
    """Return rules, roundings and estimators, each with the JSON Schema of its settings, presets and exports."""
    return _METHODS


def _rule_params(parameters: dict[str, Any]) -> dict[str, Any]:
    properties = {name: {**_of_default(default), **PARAMETERS.get(name, {})} for name, default in parameters.items()}
    required = [name for name, default in parameters.items() if default is None]
    return {**_NO_PARAMS, "properties": properties, **({"required": required} if required else {})}


def _of_default(default: Any) -> dict[str, Any]:
    """Return the schema of a setting with this default; None says that there is none and that it must be given."""
    if default is None:
        return {}
    return {"type": "array" if isinstance(default, list | tuple) else "number", "default": default}


_METHODS = Methods(
    rules=[
        RuleMethod(
            name=rule.name,
            summary=rule.summary,
            source=rule.source,
            uses_scores=rule.uses_scores,
            params_schema=_rule_params(dict(rule.parameters)),
        )
        for rule in RULES.values()
    ],
    roundings=[
        Method(name=name, summary=summary, params_schema=_NO_PARAMS) for name, summary in ROUNDING_SUMMARIES.items()
    ],
    estimators=[
        Method(name=name, summary=summary, params_schema=_HILL_PARAMS if name == "hill_fraction" else _NO_PARAMS)
        for name, summary in ESTIMATOR_SUMMARIES.items()
    ],
    papers=[Preset(name=name, settings=dict(settings)) for name, settings in PAPERS.items()],
    exports=[ExportFormat(name=name, media_type=media) for name, media in MEDIA_TYPES.items()],
)
