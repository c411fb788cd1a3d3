"""What the store answers with: frozen rows, and the refusals of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
MAX_ATTEMPTS = 3  # chosen here: two accidents are bad luck, a third is the job's own doing


class QueueFullError(Exception):
    """As many analyses wait as may wait; try again later."""


class IdempotencyConflictError(Exception):
    """The Idempotency-Key was used before, for another request."""


class KeyNameTakenError(Exception):
    """A key of that name is in use; revoke it first or choose another name."""


@dataclass(frozen=True)
class Analysis:
    """One analysis as the database has it. Times are Unix seconds; ``seq`` orders analyses by when they came.

    ``version`` grows with every change that a client could see, so it serves as a weak ETag. ``done`` of ``total``
    matrices are measured. ``attempt`` counts how often a worker began. ``error`` is a problem document, ``summary``
    what ``ModelAlphas.summary()`` said, ``model`` the analysed model (id, revision, commit, fingerprint, ..).
    ``owner`` has it until ``lease_until``; both are None unless it runs.
    """

    id: str
    seq: int
    version: int
    status: Status
    request: dict[str, Any]
    content_key: str
    model: dict[str, Any] | None
    done: int
    total: int
    attempt: int
    cancel_requested: bool
    error: dict[str, Any] | None
    summary: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    priority: int
    owner: str | None
    lease_until: float | None

    @property
    def finished(self) -> bool:
        """Whether the status will not change any more."""
        return self.status in FINAL


@dataclass(frozen=True)
class Submitted:
    """The analysis that answers a request; ``created`` is False when one with the same content was there already."""

    analysis: Analysis
    created: bool


@dataclass(frozen=True)
class Event:
    """What a stream of events tells: ``seq`` grows within one analysis. Of ``progress`` only the latest is kept."""

    seq: int
    kind: Literal["progress", "layer", "done"]
    data: dict[str, Any]


@dataclass(frozen=True)
class LayerEvent:
    """One layer that is known: ``name`` is unique within the analysis, so that a second attempt tells it only once."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Purge:
    """Keys of spectra that were to be deleted at ``created_at``; ``seq`` grows."""

    seq: int
    spectra: tuple[str, ...]
    created_at: float


@dataclass(frozen=True)
class AllocationRow:
    """One schedule: ``document`` as it is answered, ``request`` as it was asked. The store sets ``created_at``."""

    id: str
    document: bytes
    request: dict[str, Any]
    analysis_id: str | None = None
    created_at: float = 0.0


@dataclass(frozen=True)
class Key:
    """An API key without its secret, of which it has the ``sha256``. ``revoked_at`` is None while it counts."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None
    sha256: str = field(repr=False)
