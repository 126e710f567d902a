"""Where the instances of a version's variants run, as its registration asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("isolation", sa.String(16), nullable=False, server_default="thread"))


def downgrade() -> None:
    with op.batch_alter_table("versions") as table:
        table.drop_column("isolation")
