"""Alembic migrations of the catalogue, applied when it is opened."""
