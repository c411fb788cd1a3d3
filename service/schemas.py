"""What clients send: strict models, without unknown fields and lenient casts; a choice between forms is a ``oneOf``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from .settings import MAX_EXPERTS, MAX_LAYERS

Name = Annotated[str, Field(max_length=100)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_EXPERTS)]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
ANALYSIS_ID = r"^an_[0-9a-f]{32}$"
ALLOCATION_ID = r"^al_[0-9a-f]{32}$"
# Listed by hand: the estimators live beside the numerics, which this process never imports. A test compares the names.
Estimator = Literal["xmin_peak_robust", "xmin_peak", "xmin_peak_reference", "ks", "xmin_median", "hill_fraction"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")]


def _setting(value: Any) -> Any:
    """Return a number or a list of numbers as it came; booleans and text are refused."""
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) > MAX_LAYERS or any(type(number) not in (int, float) for number in numbers):
        raise ValueError(f"expected a number or a list of at most {MAX_LAYERS} numbers")
    return value


_SETTING_SCHEMA = {
    "anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "maxItems": MAX_LAYERS}]
}
Setting = Annotated[Any, PlainValidator(_setting), WithJsonSchema(_SETTING_SCHEMA)]


def form_of(*keys: str) -> Discriminator:
    """Return what tells apart forms by the key that only they have; without any of them the first is tried."""

    def tag(value: Any) -> str:
        for key in keys:
            if (key in value) if isinstance(value, dict) else hasattr(value, key):
                return f"<{key}>"
        return f"<{keys[0]}>"

    return Discriminator(tag)


class Request(BaseModel):
    """A body or a part of one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class HubModel(Request):
    """A model of the hub. ``revision``: a branch, a tag or a commit; the default branch when left out."""

    id: str = Field(min_length=1, max_length=200, examples=["meta-llama/Llama-2-7b-hf"])
    revision: str | None = Field(default=None, min_length=1, max_length=200)


class LocalModel(Request):
    """A file or folder on the service's machine, below one of the folders that its operator opened."""

    path: str = Field(min_length=1, max_length=4096)


Model = Annotated[
    Annotated[HubModel, Tag("<id>")] | Annotated[LocalModel, Tag("<path>")],
    form_of("id", "path"),
]


class LayerFilter(Request):
    """Globs on tensor name, module path or role: what is analysed, and what of it is left out."""

    include: list[Pattern] = Field(default=[], max_length=64)
    exclude: list[Pattern] = Field(default=[], max_length=64)


class Question(Request):
    """What decides the alphas of a model."""

    model: Model
    estimator: Estimator = "xmin_peak_robust"
    hill_fraction: float = Field(default=0.25, gt=0, le=1, description="tail share of the estimator of that name")
    layer_filter: LayerFilter = LayerFilter()
    fill: Literal["median"] | None = Field(default=None, description="what a layer without any valid alpha gets")
    stability: bool = Field(default=False, description="give every alpha its band")


class AnalysisRequest(Question):
    """An analysis: a model and how its alphas are estimated.

    ``device`` and ``priority`` (higher first) change when and where it is computed, not what comes of it.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": {"id": "meta-llama/Llama-2-7b-hf"}, "estimator": "xmin_peak_robust"}}
    )

    device: Device = "auto"
    priority: int = Field(default=0, ge=-100, le=100)


class AlphasSource(Request):
    """One alpha a layer, in order."""

    alphas: list[Alpha] = Field(min_length=1, max_length=MAX_LAYERS)


class AnalysisSource(Request):
    """The alphas of a finished analysis."""

    analysis_id: str = Field(pattern=ANALYSIS_ID)


class ModelSource(Question):
    """The alphas of a model: at once when it was analysed that way before, else by an analysis that is started."""


Source = Annotated[
    Annotated[AlphasSource, Tag("<alphas>")]
    | Annotated[AnalysisSource, Tag("<analysis_id>")]
    | Annotated[ModelSource, Tag("<model>")],
    form_of("alphas", "analysis_id", "model"),
]


class TotalBudget(Request):
    """Experts of all layers together."""

    total: Count


class MeanBudget(Request):
    """Experts a layer on average; times the number of layers it must be a whole number."""

    per_layer_mean: float = Field(gt=0, le=MAX_EXPERTS, allow_inf_nan=False)


Budget = Annotated[
    Annotated[TotalBudget, Tag("<total>")] | Annotated[MeanBudget, Tag("<per_layer_mean>")],
    form_of("total", "per_layer_mean"),
]


class BoundsRequest(Request):
    """Fewest and most experts of a layer; no upper bound when ``max`` is null."""

    min: int = Field(default=1, ge=0, le=MAX_EXPERTS)
    max: Count | None = None


class AllocationRequest(Request):
    """An allocation: alphas, a budget and the way from one to the other.

    ``method`` is the name of a rule and ``params`` its settings, as GET /v1/methods lists them. ``confidence`` adds
    how far the alphas' own error moves each layer's experts; it needs an analysis. ``store: false`` answers without
    keeping the schedule.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "source": {"alphas": [2.1, 2.9, 3.4, 2.6]},
                "budget": {"total": 20},
                "method": "alpha_power",
                "params": {"beta": 2.5},
                "bounds": {"min": 1, "max": None},
                "rounding": "largest_remainder",
                "top_k": 2,
                "confidence": False,
                "store": True,
            }
        }
    )

    source: Source
    budget: Budget
    method: Name = "alpha_power"
    params: dict[Name, Setting] = Field(default={}, max_length=16)
    bounds: BoundsRequest = BoundsRequest()
    rounding: Name = "largest_remainder"
    top_k: Count = 2
    confidence: bool = False
    store: bool = True
