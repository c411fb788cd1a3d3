"""Which spectra a result was made of, and which of them are to be deleted everywhere."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("results", sa.Column("spectra", sa.Text()))
    op.create_table(
        "purges",
        sa.Column("seq", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("spectra", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_purges"),
        sqlite_autoincrement=True,
    )
