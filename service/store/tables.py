"""The schema, one for both databases. Times are Unix seconds, JSON is kept as its canonical text."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# SQLite numbers rows by itself only in a column of exactly this type.
Sequence = BigInteger().with_variant(Integer(), "sqlite")

analyses = Table(
    "analyses",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("version", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("content_key", Text, nullable=False),
    # The content key while this row answers for it, else NULL: what makes two rows of one content impossible.
    Column("active_key", Text, unique=True),
    # Copies from the request, to search by.
    Column("model_name", Text, nullable=False),
    Column("model_revision", Text),
    Column("estimator", Text),
    Column("model", Text),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("error", Text),
    Column("summary", Text),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("priority", Integer, nullable=False),
    Column("owner", Text),
    Column("lease_until", Double),
    Column("lease_seconds", Double),
    Index("ix_analyses_queue", "status", "priority", "seq"),
    Index("ix_analyses_model_name", "model_name", "seq"),
    sqlite_autoincrement=True,  # a number is never given twice, not even after the newest row was deleted
)

events = Table(
    "events",
    metadata,
    Column("analysis_id", Text, ForeignKey(analyses.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("ix_events_seq", "analysis_id", "seq"),
)

results = Table(
    "results",
    metadata,
    Column("analysis_id", Text, ForeignKey(analyses.c.id, ondelete="CASCADE"), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("spectra", Text),  # keys of the spectra that it was made of; NULL when they are not known
)

# Spectra that were to be deleted: read by every worker, each deletes what its own machine has.
purges = Table(
    "purges",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("spectra", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    sqlite_autoincrement=True,  # workers ask for what is newer than the last they saw
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("analysis_id", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

allocations = Table(
    "allocations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("request", Text, nullable=False),
    Column("analysis_id", Text),  # no foreign key: a schedule outlives the analysis it came from
    Column("created_at", Double, nullable=False),
    Index("ix_allocations_created_at", "created_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("active_name", Text, unique=True),  # the name while the key counts, else NULL
    Column("sha256", Text, nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

pings = Table("pings", metadata, Column("id", Integer, primary_key=True), Column("at", Double, nullable=False))
