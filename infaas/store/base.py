"""What the live metadata store promises, whichever engine keeps it.

A store holds versioned records by kind and key. Every write may be conditional on the version last seen and on a
lease's fence, so that two writers never overwrite each other unseen and a deposed leader changes nothing. Every change
of a kind that anybody follows goes into one ordered stream. A store that was emptied has another epoch: whatever it
does not say is then unknown, not absent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Kind(StrEnum):
    """The kinds of records."""

    TASK = "task"
    MODEL = "model"
    VARIANT = "variant"
    WORKER = "worker"
    BUILD = "build"
    PROGRESS = "progress"
    RESULT = "result"
    CONTROLLER = "controller"
    CATALOGUE = "catalogue"
    INTENT = "intent"
    DEMAND = "demand"
    FLEET = "fleet"
    FLEET_STEP = "fleet-step"


UNFOLLOWED = frozenset({Kind.INTENT, Kind.DEMAND, Kind.FLEET, Kind.FLEET_STEP})
"""Kinds that are listed and never watched: their changes do not go into the stream. Programs of the version before
them, which would stumble over them, never meet them (ADR 33)."""


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    key: str
    value: bytes
    version: int
    """Grows with each write of this key, starting at 1."""


@dataclass(frozen=True, slots=True)
class Change:
    """A record's new value; `value` None: it was deleted or expired. `cursor` resumes the stream after it."""

    kind: Kind
    key: str
    value: bytes | None
    version: int
    cursor: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    records: Sequence[Record]
    cursor: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Lease:
    """`fence` grows with every change of holder; a write that carries an older one is refused."""

    name: str
    holder: str
    fence: int
    ttl_s: float


class CursorLostError(Exception):
    """The stream no longer reaches back to the cursor, or the epoch changed: list again."""


class MetadataStore(Protocol):
    """All methods raise `UnavailableError` when the engine cannot be reached."""

    async def epoch(self) -> str:
        """An id made when the store was first written; another one means that it was emptied in between."""

    async def get(self, kind: Kind, key: str) -> Record | None: ...

    async def list(self, kinds: Sequence[Kind]) -> Snapshot:
        """All records of some kinds and a cursor to follow from: nothing after the listing is missed."""

    async def put(
        self,
        kind: Kind,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        lease: Lease | None = None,
        ttl_s: float | None = None,
    ) -> int:
        """Write and return the new version. `expect` 0: must not exist yet. With `ttl_s` the record expires.

        Raises PreconditionError when the version or the lease's fence does not hold.
        """

    async def delete(self, kind: Kind, key: str, *, expect: int | None = None, lease: Lease | None = None) -> bool:
        """False when there was nothing to delete. Raises PreconditionError as `put` does."""

    async def touch(self, kind: Kind, key: str, *, ttl_s: float) -> bool:
        """Renew an expiring record without a change in the stream; False when it is gone."""

    def watch(self, cursor: str, epoch: str) -> AsyncGenerator[Sequence[Change], None]:
        """Changes after the cursor, in order, in groups as they come. Raises CursorLostError. Ends when closed.

        An empty group says that the store was just asked and had nothing new; one comes at least every second. Changes
        of `UNFOLLOWED` kinds, and of kinds that this program does not know, are not among them.
        Expiries appear as deletions no later than one second after they are due.
        """

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take a free lease, or renew one's own (same fence); None while somebody else holds it."""

    async def renew(self, lease: Lease) -> bool:
        """False when it has been lost; the holder must stop acting on it."""

    async def release(self, lease: Lease) -> None: ...

    async def holders(self) -> Mapping[str, str]:
        """Every held lease's name and holder, for people."""

    async def close(self) -> None: ...
