"""Tasks, models, versions, variants, profiles, decisions, audit.

A revision says what the tables were on its day, in its own words: it must not import today's definitions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "revision",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
    )
    op.execute(sa.text("INSERT INTO revision (id, value) VALUES (1, 0)"))
    op.create_table(
        "names",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_names"),
        sa.CheckConstraint("level IN ('task', 'model', 'variant')", name=op.f("ck_names_level")),
    )
    _create_registered()
    _create_made()
    _create_journals()


def _create_registered() -> None:
    op.create_table(
        "tasks",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tasks"),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name="fk_tasks_name_names"),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("task", sa.String(128), nullable=False),
        sa.Column("current", sa.Integer),
        sa.Column("wanted", sa.Integer),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("retired_at", sa.Float),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name="fk_models_name_names"),
        sa.ForeignKeyConstraint(["task"], ["tasks.name"], name="fk_models_task_tasks"),
    )
    op.create_index("ix_models_task", "models", ["task"])
    op.create_table(
        "versions",
        sa.Column("id", sa.String(160), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("original", sa.String(64), nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("evaluation", sa.String(64)),
        sa.Column("calibration", sa.String(64)),
        sa.Column("metric", sa.String(128), nullable=False),
        sa.Column("declared_accuracy", sa.Float),
        sa.Column("fixed_batch", sa.Integer),
        sa.Column("evaluation_rows", sa.Integer),
        sa.Column("warnings", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_versions_model_models"),
        sa.UniqueConstraint("model", "number", name="uq_versions_model_number"),
        sa.UniqueConstraint("model", "original", name="uq_versions_model_original"),
    )
    op.create_index("ix_versions_state", "versions", ["state"])


def _create_made() -> None:
    op.create_table(
        "recipe_results",
        sa.Column("version_id", sa.String(160), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("variant", sa.String(128)),
        sa.Column("max_abs_error", sa.Float),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("version_id", "recipe", name="pk_recipe_results"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_recipe_results_version_id_versions"),
    )
    op.create_table(
        "variants",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version_id", sa.String(160), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_variants"),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name="fk_variants_name_names"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_variants_version_id_versions"),
        sa.UniqueConstraint("version_id", "recipe", name="uq_variants_version_id_recipe"),
    )
    op.create_index("ix_variants_version_id", "variants", ["version_id"])
    op.create_table(
        "profiles",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("variant", sa.String(128), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("samples", sa.String(64)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_profiles"),
        sa.ForeignKeyConstraint(["variant"], ["variants.name"], name="fk_profiles_variant_variants"),
    )
    op.create_index("ix_profiles_variant", "profiles", ["variant"])


def _create_journals() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
    )
    op.create_index("ix_decisions_request_id", "decisions", ["request_id"])
    op.create_index("ix_decisions_at", "decisions", ["at"])
    op.create_table(
        "audit",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject_at", "audit", ["subject", "at"])


def downgrade() -> None:
    for table in (
        "audit", "decisions", "idempotency_keys", "profiles", "variants", "recipe_results",
        "versions", "models", "tasks", "names", "revision",
    ):  # fmt: skip
        op.drop_table(table)
