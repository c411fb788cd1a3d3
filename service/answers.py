"""What the service answers with, beside the documents of the library: analyses, lists, names to choose from, limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from .schemas import ANALYSIS_ID


class Progress(BaseModel):
    """How many matrices are measured; ``total`` is 0 until the model has been opened."""

    done: int
    total: int
    unit: Literal["matrices"] = "matrices"


class AnalysisLinks(BaseModel):
    """Where to go from an analysis."""

    self: str
    events: str
    cancel: str


class AnalysisResult(BaseModel):
    """Where the result is, and its summary."""

    layers_url: str
    report_url: str
    summary: dict[str, Any]


class JobProblem(BaseModel):
    """Why an analysis failed: a problem document without a request. ``code`` is stable, ``detail`` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class AnalysisAnswer(BaseModel):
    """A job that measures a model. It always reaches ``succeeded``, ``failed`` (see ``error``) or ``cancelled``.

    ``request`` is what was asked, ``model`` what was found: id, revision, commit, fingerprint. ``attempt`` counts how
    often a worker began. Times are RFC 3339 in UTC.
    """

    object: Literal["analysis"] = "analysis"
    id: str = Field(pattern=ANALYSIS_ID)
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    progress: Progress
    eta_seconds: float | None = None
    attempt: int
    cancel_requested: bool
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    request: dict[str, Any]
    model: dict[str, Any] | None = None
    result: AnalysisResult | None = None
    error: JobProblem | None = None
    links: AnalysisLinks


class AnalysisList(BaseModel):
    """One page of analyses, newest first; ``next_cursor`` leads to the next, null on the last."""

    object: Literal["list"] = "list"
    data: list[AnalysisAnswer]
    next_cursor: str | None


class LayerTable(BaseModel):
    """The alphas of a finished analysis, a row a layer or a matrix; the columns are those of the alphas document."""

    object: Literal["table"] = "table"
    level: Literal["layer", "matrix"]
    estimator: str
    columns: list[str]
    rows: list[list[Any]]


class FieldFault(BaseModel):
    """One thing that is wrong; ``pointer`` is a JSON Pointer into the document, empty for all of it."""

    pointer: str
    detail: str


class Validation(BaseModel):
    """Whether a document is what it says it is."""

    valid: bool
    errors: list[FieldFault]


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


class ExportFormat(BaseModel):
    """A form that a schedule can be exported in, and the media type it comes with."""

    name: str
    media_type: str


class Methods(BaseModel):
    """All that can be chosen by name: rules for ``method``, roundings, estimators for analyses, export formats."""

    rules: list[RuleMethod]
    roundings: list[Method]
    estimators: list[Method]
    papers: list[Preset]
    exports: list[ExportFormat]


class Limits(BaseModel):
    """What the service refuses beyond; null means no limit."""

    max_body_bytes: int
    max_layers: int
    max_experts: int
    max_queued: int
    max_streams: int
    max_wait_seconds: int
    rate_limit: str | None


class Info(BaseModel):
    """This service: its version, what computes its analyses, its limits, and what it lets be analysed."""

    name: Literal["alphalloc"] = "alphalloc"
    version: str
    api: Literal["v1"] = "v1"
    backend: str
    local_models: bool = Field(description="whether paths below the operator's folders may be analysed")
    limits: Limits


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])
    version: str


class ReadyAnswer(BaseModel):
    """The service can take work; ``checks`` says what was found of each thing that has to hold."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str]
