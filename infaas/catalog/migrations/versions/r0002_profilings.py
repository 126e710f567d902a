"""Profilings; idempotency keys with a state; the candidates of journaled decisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "profilings",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("variant", sa.String(128), nullable=False),
        sa.Column("budget_s", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_profilings"),
        sa.ForeignKeyConstraint(["variant"], ["variants.name"], name="fk_profilings_variant_variants"),
    )
    op.create_index("ix_profilings_variant", "profilings", ["variant"])
    op.create_index("ix_profilings_state", "profilings", ["state"])
    is_open = sa.text("state IN ('Pending', 'Running')")
    op.create_index(
        "uq_profilings_open", "profilings", ["variant"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )
    state = sa.Column("state", sa.String(16), nullable=False, server_default="claimed")
    op.add_column("idempotency_keys", state)
    op.execute(sa.text("UPDATE idempotency_keys SET state = 'done' WHERE answer <> ''"))
    op.add_column("decisions", sa.Column("candidates", sa.LargeBinary))


def downgrade() -> None:
    with op.batch_alter_table("decisions") as table:
        table.drop_column("candidates")
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_column("state")
    op.drop_table("profilings")
