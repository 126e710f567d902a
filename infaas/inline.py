"""A worker in the controller's own process (`worker.inline`), as the controller has it.

Components never import each other: the controller's composition root finds the worker here, by entry point, and knows
of it no more than how to meet it and when to tell it to stop.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from typing import Protocol

from infaas.clock import Clock
from infaas.errors import NotFoundError
from infaas.rpc.hop.endpoint import Handler
from infaas.rpc.hop.inner import InnerEnd
from infaas.settings import Settings

GROUP = "infaas.inline"


class InlineWorker(Protocol):
    """Lives on the event loop that awaits `run`."""

    @property
    def address(self) -> str:
        """Where other controllers reach it, and what its record says."""

    def meet(self, handler: Handler) -> InnerEnd:
        """A connection to it. Raises ConnectionRefusedError while it takes none."""

    async def run(self, stop: asyncio.Event) -> int | None:
        """Until told to stop, or until it cannot go on. Returns what the process must end with at once, because
        something runs in a thread that nothing can end; None: nothing does. Raises what kept it from living."""


class MakeInline(Protocol):
    """What the entry point names."""

    def __call__(self, settings: Settings, clock: Clock) -> InlineWorker: ...


def inline_worker(settings: Settings, clock: Clock) -> InlineWorker:
    """Raises NotFoundError when no worker is installed, SettingsError when it cannot live here."""
    for entry in entry_points(group=GROUP, name="worker"):
        make: MakeInline = entry.load()
        return make(settings, clock)
    raise NotFoundError("worker.inline: no worker is installed that can live in the controller's process")
