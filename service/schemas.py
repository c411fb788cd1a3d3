"""What clients send and receive, beside the schedule itself. Requests are strict: no unknown field, no lenient cast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from .settings import MAX_EXPERTS, MAX_LAYERS

Name = Annotated[str, Field(max_length=100)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_EXPERTS)]


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


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Source(_Request):
    """Where the alphas come from: one alpha a layer, in order."""

    alphas: list[Alpha] = Field(min_length=1, max_length=MAX_LAYERS)


class BudgetRequest(_Request):
    """How much there is to give away: experts of all layers together."""

    total: Count


class BoundsRequest(_Request):
    """Fewest and most experts of a layer; no upper bound when ``max`` is null."""

    min: int = Field(default=1, ge=0, le=MAX_EXPERTS)
    max: Count | None = None


class AllocationRequest(_Request):
    """An allocation: alphas, a budget and the way from one to the other.

    ``method`` is the name of a rule and ``params`` its settings, as GET /v1/methods lists them.
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
            }
        }
    )

    source: Source
    budget: BudgetRequest
    method: Name = "alpha_power"
    params: dict[Name, Setting] = Field(default_factory=dict, max_length=16)
    bounds: BoundsRequest = BoundsRequest()
    rounding: Name = "largest_remainder"
    top_k: Count = 2


class Method(BaseModel):
    """Something that can be chosen by name. ``params_schema`` is the JSON Schema of its settings."""

    name: str
    summary: str
    params_schema: dict[str, Any]


class RuleMethod(Method):
    """An allocation rule. ``uses_scores`` is false for rules that look at the depth alone."""

    source: str
    uses_scores: bool


class Preset(BaseModel):
    """The settings that a paper's released code ran with."""

    name: str
    settings: dict[str, Any]


class Methods(BaseModel):
    """All that can be chosen by name: rules for ``method``, roundings, and the estimators that alphas may come from."""

    rules: list[RuleMethod]
    roundings: list[Method]
    estimators: list[Method]
    papers: list[Preset]


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])
    version: str
