"""Where a document comes from: the tool, the model, the analysis and the layer, as small frozen values.

Shared by every saved document of this project. :class:`LayerScores` is all that the allocation asks of an analysis.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, field_validator

from alphalloc.documents import package_version

Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Frozen(BaseModel):
    """A value of a document: immutable; fields that a newer minor version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CreatedBy(Frozen):
    """The program that wrote a document."""

    tool: str = "alphalloc"
    version: str

    @classmethod
    def current(cls) -> CreatedBy:
        """Return this program and its installed version (``0+unknown`` from a checkout that is not installed)."""
        return cls(version=package_version())


class ModelRef(Frozen):
    """The model that was analysed; ``fingerprint`` hashes its headers, ``num_layers`` counts its blocks.

    ``id`` is a hub id when there is a ``commit``, else the last name of a local path or a class name.
    """

    id: str
    revision: str | None = None
    commit: str | None = None
    fingerprint: str | None = None
    format: str | None = None
    quantized: bool = False
    num_layers: Count

    @property
    def hub_id(self) -> str | None:
        """The id, where another program can load the model by it."""
        return None if self.commit is None else self.id


class AnalysisRef(Frozen):
    """The estimator behind the alphas and its settings."""

    estimator: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _whole_numbers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {name: whole_numbers(value) for name, value in settings.items()}


class LayerRef(Frozen):
    """A block: its index in its stack, and the stack (empty for a model with one; else such as "encoder")."""

    layer: Count
    stack: str = ""

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer}" if self.stack else str(self.layer)


@runtime_checkable
class LayerScores(Protocol):
    """What :func:`alphalloc.allocation.allocate` needs to know of an analysis.

    ``per_layer`` holds one alpha a layer in the order of ``layer_refs``; ``notes`` are warnings that the schedule
    must carry on.
    """

    @property
    def per_layer(self) -> tuple[float, ...]: ...
    @property
    def layer_refs(self) -> tuple[LayerRef, ...]: ...
    @property
    def model_ref(self) -> ModelRef | None: ...
    @property
    def analysis_ref(self) -> AnalysisRef | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def whole_numbers(value: Any) -> Any:
    """Return ``value`` with 2.0 written 2, in lists too: programs differ in how they write it, and an id must not."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, (list, tuple)):
        return [whole_numbers(item) for item in value]
    return value
