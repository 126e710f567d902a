"""Sees to it that somebody learns whom the worker's last life died of, however late the first controller comes.

Somebody has learnt it when a report with the dead was handed to the stream of one controller. That is as much as this
side can know: whether it acted, whether it leads, and whether it lives long enough to do either, is not answered. The
dead therefore stay in every report of this life for `decide.instances.DEATH_KEPT_S` more, for every controller that
comes by then; only a worker that ends within that time, after its one listener was lost as well, takes the blame along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from infaas_worker.decide.events import DeathRemembered


class Notes(Protocol):
    """What keeps the deaths over the worker's lives (`blackbox`)."""

    @property
    def deaths(self) -> tuple[DeathRemembered, ...]: ...

    def told(self) -> None: ...


class Audience(Protocol):
    """Those to whom reports go (`api.publisher`)."""

    @property
    def is_there(self) -> bool: ...

    @property
    def has_heard(self) -> bool: ...


class Obituary:
    """Owned by the composition root; `beat` with each heartbeat, before its report."""

    def __init__(self, notes: Notes, audience: Audience, remember: Callable[[Iterable[DeathRemembered]], None]) -> None:
        """`remember` puts the dead into the reports; those that are there already stay as they are."""
        self._notes = notes
        self._audience = audience
        self._remember = remember
        self._is_shown = False
        """Whether a report with them went out to somebody."""
        self._is_told = not notes.deaths
        remember(notes.deaths)

    def beat(self) -> None:
        """Raises OSError when the notes cannot be put away; they are then told again in the next life."""
        if self._is_told:
            return
        if self._is_shown and self._audience.has_heard:
            self._is_told = True
            self._notes.told()
        elif self._audience.is_there:
            self._remember(self._notes.deaths)
            self._is_shown = True
        else:
            self._is_shown = False
