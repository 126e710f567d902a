"""How Alembic reaches the catalogue: over the connection its caller opened, so that one transaction covers all."""

from __future__ import annotations

from alembic import context

from infaas.catalog.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
