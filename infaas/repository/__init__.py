"""Artifacts by the SHA-256 of their bytes: models, variants, evaluation sets, raw samples."""
