"""What is known of the parts a controller depends on: the store, the catalogue, the journal, the workers.

Queries need none of it. It is what `GET /v1/system`, `infaas status`, the health answers and the metrics say when
something is lost, so that nobody has to guess from logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn, Protocol

from infaas.aio.every import every
from infaas.catalog.catalog import Catalog
from infaas.clock import Clock
from infaas.control import PartDocument, SystemDocument, WorkerDocument
from infaas.domain.ids import ControllerId
from infaas.errors import UnavailableError
from infaas.store.leader import Leadership
from infaas.store.view import ViewKeeper
from infaas_controller.journal import Journal
from infaas_controller.peers import Peers
from infaas_controller.siblings import Siblings

UP = "up"
READ_ONLY = "read-only"
LOST = "lost"
STORE_FRESH_S = 5.0
"""The store counts as up while the view was confirmed this recently."""
CHECK_EVERY_S = 2.0


class Links(Protocol):
    """What is needed of the links to workers."""

    def documents(self) -> Sequence[WorkerDocument]: ...


def part_state(*, is_read: bool, write_trouble: str | None) -> str:
    """`lost` says that nothing is heard of the part; `read-only` that it answers and takes no changes."""
    if not is_read:
        return LOST
    return UP if write_trouble is None else READ_ONLY


class SystemWatch:
    """Belongs to one event loop. `run` keeps looking at the catalogue, which nothing else may have asked for long."""

    def __init__(
        self,
        controller: ControllerId,
        catalog: Catalog,
        keeper: ViewKeeper,
        peers: Peers,
        leadership: Leadership,
        journal: Journal,
        links: Links,
        is_ready: Callable[[], bool],
        clock: Clock,
        siblings: Siblings | None = None,
    ) -> None:
        """`siblings` are the processes that are one controller with this one; None: there can be none."""
        self._controller = controller
        self._siblings = siblings
        self._catalog = catalog
        self._keeper = keeper
        self._peers = peers
        self._leadership = leadership
        self._journal = journal
        self._links = links
        self._is_ready = is_ready
        self._clock = clock

    async def run(self) -> NoReturn:
        await every(CHECK_EVERY_S, self.look, clock=self._clock, name="system")

    async def look(self) -> None:
        """Ask the catalogue something small, and after a failed write whether it takes writes again. How that went
        is remembered there."""
        with contextlib.suppress(UnavailableError):
            await asyncio.to_thread(self._catalog.revision)
            if self._catalog.health.write_trouble is not None:
                await asyncio.to_thread(self._catalog.prove_writable)

    def store(self) -> PartDocument:
        age_s = self._keeper.age_s()
        trouble = self._peers.write_trouble
        state = part_state(is_read=age_s < STORE_FRESH_S, write_trouble=trouble)
        reason = "" if state == UP else (self._keeper.trouble or trouble or "it has not answered yet")
        return PartDocument(state, reason, None if math.isinf(age_s) else round(age_s, 3))

    def catalogue(self) -> PartDocument:
        health = self._catalog.health
        unread = health.read_trouble or health.refusal
        state = part_state(is_read=unread is None, write_trouble=health.write_trouble)
        return PartDocument(state, unread or health.write_trouble or "")

    @property
    def is_leader(self) -> bool:
        """This very process."""
        return self._leadership.lease is not None

    @property
    def journal_waiting(self) -> int:
        return len(self._journal)

    def document(self) -> SystemDocument:
        """Of the parts, what this process sees; of what each process has its own of, the whole controller's."""
        workers = self._links.documents()
        found = SystemDocument(
            controller=self._controller,
            is_ready=self._is_ready(),
            is_leader=self.is_leader,
            store=self.store(),
            catalogue=self.catalogue(),
            journal_waiting=len(self._journal),
            journal_dropped=self._journal.dropped,
            workers=len(workers),
            workers_connected=sum(worker.is_connected for worker in workers),
        )
        if self._siblings is None:
            return found
        told = self._siblings.all()
        return replace(
            found,
            controller=self._siblings.name,
            is_leader=any(one.own.is_leader for one in told),
            journal_waiting=sum(one.own.live.journal_waiting or 0 for one in told),
            journal_dropped=sum(one.own.journal_dropped for one in told),
            processes=self._siblings.documents(),
        )

    def words(self) -> dict[str, str]:
        """For health probes, which carry no credential: states only, no reasons."""
        return {"store": self.store().state, "catalogue": self.catalogue().state}
