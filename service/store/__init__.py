"""The service's database: analyses with their leases, results, allocations and keys, on SQLite or PostgreSQL."""

from .database import UnstorableError
from .migrate import upgrade
from .rows import (
    FINAL,
    MAX_ATTEMPTS,
    AllocationRow,
    Analysis,
    Event,
    IdempotencyConflictError,
    Key,
    KeyNameTakenError,
    LayerEvent,
    Purge,
    QueueFullError,
    Status,
    Submitted,
)
from .store import Store
from .writer import AllocationWriter

__all__ = [
    "FINAL",
    "MAX_ATTEMPTS",
    "AllocationRow",
    "AllocationWriter",
    "Analysis",
    "Event",
    "IdempotencyConflictError",
    "Key",
    "KeyNameTakenError",
    "LayerEvent",
    "Purge",
    "QueueFullError",
    "Status",
    "Store",
    "Submitted",
    "UnstorableError",
    "upgrade",
]
