"""Deletes artifacts that nothing names: what a crash left between storing a file and naming it.

The leader does it, because only it sees both sides at once: the catalogue, and the results that wait in the store. It
needs nobody's attention so, and what is deleted is in the log. A file is left alone for a day after it was last stored:
an upload or a build that is under way names its files long before that, and storing bytes again makes them new.

Another catalogue's files would look like nobody's. So every catalogue leaves its mark in the repository that it uses,
and nothing is deleted where there is another one's. Without `repository.collect` it works only in the state folder's
own repository, and only if that was empty when the first mark was left.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from infaas.aio.every import every
from infaas.catalog.catalog import Catalog
from infaas.clock import Clock
from infaas.domain.ids import Digest
from infaas.observe.log import get_logger
from infaas.repository.base import UNKNOWN, Collected, Repository
from infaas.settings import Settings
from infaas.store.base import Kind, Lease, MetadataStore, Record

_EVERY_S = 600.0
_NAMING = (Kind.BUILD, Kind.RESULT, Kind.VARIANT)
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DIGESTS_PER_LINE = 50
_log = get_logger(__name__)


def is_on(settings: Settings) -> bool:
    """As the settings say; where they do not, only in a repository that is certainly this system's alone."""
    wanted = settings.repository.collect
    return settings.repository.url is None if wanted is None else wanted


def objection(settings: Settings, own: str, users: frozenset[str]) -> str | None:
    """Why nothing may be deleted in a repository with these users; None: all in it is this catalogue's."""
    if others := sorted(users - {own, UNKNOWN}):
        return (
            f"catalogue {', '.join(others)} uses it, too (this one is {own}); of a catalogue that is gone, delete the "
            "mark in the repository's folder `catalogues`"
        )
    if own not in users:
        return f"catalogue {own} has left no mark in it"
    if UNKNOWN in users and settings.repository.collect is not True:
        return (
            "it had artifacts before the first catalogue left its mark; set `repository.collect: true` if they are "
            "no other catalogue's"
        )
    return None


def named_by(records: Sequence[Record]) -> frozenset[Digest]:
    """Every digest that live records mention, whatever their form."""
    return frozenset(Digest(found.decode()) for record in records for found in _DIGEST.findall(record.value))


class Collector:
    """`run` is eternal and belongs to whoever leads."""

    def __init__(
        self,
        catalog: Catalog,
        store: MetadataStore,
        repository: Repository,
        settings: Settings,
        clock: Clock,
        lease: Callable[[], Lease | None],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._repository = repository
        self._settings = settings
        self._clock = clock
        self._lease = lease
        self._objection: str | None = None

    async def run(self) -> NoReturn:
        await every(_EVERY_S, self.step, clock=self._clock, name="collector")

    async def step(self) -> Collected | None:
        """None when it is not ours to do. Raises UnavailableError.

        The store is read first: a result moves from there into the catalogue, never back. A catalogue that names
        nothing at all is more likely a wrong one than a reason to delete everything.
        """
        own = await asyncio.to_thread(self._catalog.identity)
        await asyncio.to_thread(self._repository.join, own)  # whoever leads, and for the others who collect there
        held = self._lease()
        if not is_on(self._settings) or held is None or not await self._is_ours(own):
            return None
        before = self._clock.wall() - self._settings.repository.collect_after_s
        live = named_by((await self._store.list(_NAMING)).records)
        named = await asyncio.to_thread(self._catalog.named_artifacts)
        if not named or self._lease() != held:
            return None
        found = await asyncio.to_thread(self._repository.collect, live | named, before)
        if found.digests:
            _log.info(
                "artifacts that nothing names were deleted", count=len(found.digests), bytes=found.size_bytes
            )  # fmt: skip
        for at in range(0, len(found.digests), _DIGESTS_PER_LINE):
            _log.info("artifacts deleted", digests=found.digests[at : at + _DIGESTS_PER_LINE])
        return found

    async def _is_ours(self, own: str) -> bool:
        """What speaks against it is said once, and again when it changes."""
        found = objection(self._settings, own, await asyncio.to_thread(self._repository.users))
        if found is not None and found != self._objection:
            _log.warning("artifacts that nothing names are kept: the repository may be somebody else's", reason=found)
        self._objection = found
        return found is None
