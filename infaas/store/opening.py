"""The store that the settings name: its URL, its credential and the certificate that it must show, brought together."""

from __future__ import annotations

from pathlib import Path

from infaas.errors import SettingsError
from infaas.settings import Settings
from infaas.store.redis import RedisStore


def open_store(settings: Settings) -> RedisStore:
    """Not connected yet. Raises SettingsError for what cannot be used: a URL, a password's file, a CA's."""
    settings.redis_password()
    has_own = settings.store.password is not None or settings.store.password_file is not None
    return RedisStore(
        settings.redis_url,
        password=settings.redis_password if has_own else None,
        ca_file=_readable("store.ca_file", settings.store.ca_file),
    )


def _readable(setting: str, file: Path | None) -> Path | None:
    if file is not None:
        try:
            file.read_bytes()
        except OSError as error:
            raise SettingsError(f"{setting} {str(file)!r} cannot be read: {error}") from error
    return file
