"""What alembic runs: the migrations, on the connection and inside the transaction that ``migrate.upgrade`` opened."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
)
context.run_migrations()
