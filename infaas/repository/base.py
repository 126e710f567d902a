"""What an artifact repository promises: immutable bytes, found by their digest, verified when fetched."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infaas.domain.ids import Digest

UNKNOWN = "unknown"
"""Stands for whoever stored artifacts before the first catalogue said that it uses the repository."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted."""

    digests: tuple[Digest, ...] = ()
    size_bytes: int = 0


class Repository(Protocol):
    """Blocking calls: run them in a thread. Raises UnavailableError when the storage cannot be reached or is full."""

    def put_bytes(self, data: bytes) -> Digest:
        """Store and return the digest; storing the same bytes twice is one artifact."""

    def put_file(self, path: Path) -> Digest: ...

    def fetch(self, digest: Digest) -> Path:
        """A local, read-only file with exactly these bytes (checked). Raises NotFoundError."""

    def has(self, digest: Digest) -> bool: ...

    def size(self, digest: Digest) -> int: ...

    def remove(self, digest: Digest) -> None: ...

    def collect(self, kept: Set[Digest], before: float) -> Collected:
        """Delete what is not in `kept` and was last stored before that time (seconds since the epoch). What somebody
        else deletes meanwhile is not counted."""

    def join(self, catalogue: str) -> None:
        """Have it said in the repository that this catalogue names artifacts of it, from now on. Idempotent; to be
        called before anything is stored for that catalogue."""

    def users(self) -> frozenset[str]:
        """Every catalogue that ever joined, and `UNKNOWN` when there were artifacts before the first one did."""


def open_repository(url: str) -> Repository:
    """`file:///path` or a plain path. Raises SettingsError for a scheme that is not known."""
    from infaas.repository.local import LocalRepository

    return LocalRepository.from_url(url)
