"""What is asked of a provider of workers. One contract suite holds for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from infaas.domain.ids import WorkerId
from infaas.errors import UnavailableError


class MachineState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    """It will never run again."""


class Order(msgspec.Struct, frozen=True):
    """A machine that is wanted; the machine keeps it, so that who finds the machine knows what it is for."""

    id: str
    """The intent's; names the machine."""
    pool: str
    worker: WorkerId
    asked_at: float
    """Wall clock, seconds since the epoch."""
    epoch: str
    """Of the store that the intent was written to. A store that was emptied since says nothing about this machine."""


class Machine(msgspec.Struct, frozen=True):
    order: Order
    state: MachineState
    said: str = ""
    """Of one that has ended: where to read why."""


class ProviderError(UnavailableError):
    """A provider cannot be reached, or refuses. Its own class, so that it is told from a store that is away."""


class Provider(Protocol):
    """Any method may be called again, by any controller, at any time, and by one that was deposed meanwhile. All raise
    ProviderError."""

    @property
    def name(self) -> str: ...

    async def list(self) -> Sequence[Machine]:
        """All that this provider has made and that were not removed, whoever asked for them."""

    async def create(self, order: Order) -> None:
        """Returns when the machine is on its way. One of that id that is there already, or has ended, is left alone."""

    async def remove(self, id: str) -> bool:
        """Ask its worker to finish what it has and end, or make it once it has had its time for that. True: nothing is
        left of the machine. To be called again until then."""
