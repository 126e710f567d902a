"""Which catalogue this is, so that a repository can say who uses it."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "identity",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("value", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identity"),
    )
    op.bulk_insert(table, [{"id": 1, "value": str(uuid.uuid4())}])


def downgrade() -> None:
    op.drop_table("identity")
