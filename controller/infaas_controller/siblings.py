"""The processes that are one controller with this one: what each says of itself now, and what they are in all.

Each writes its note twice a second and at every change of its state; whoever is asked reads all of them. So an
answer for the whole controller needs no other process to be awake, and one that died is gone from it at once: the
master tears its note up. A lone controller writes none, and is all there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NoReturn

from infaas.aio.every import every
from infaas.clock import Clock
from infaas.control import ProcessDocument
from infaas.domain.ids import ControllerId
from infaas.errors import InvalidError
from infaas.observe.live import Live, together
from infaas.observe.log import get_logger
from infaas.processes.notes import Note
from infaas.processes.seat import Seat
from infaas.rpc.codec import decode, encode
from infaas.settings import Settings

WRITE_EVERY_S = 0.5
UNREADY_AFTER_S = 2.0
"""A process that is not ready listens after this long if no other one does: somebody has to say why."""
SHARED_OUT = ("max_connections", "max_queue_size", "max_queue_queries", "max_queue_bytes", "decision_memory")
_log = get_logger(__name__)


class ProcessState(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Own:
    """What a process says of itself beside its name and state."""

    live: Live
    is_leader: bool
    is_ready: bool
    journal_dropped: int
    starts: int
    """Processes that have had this seat, this one included."""


@dataclass(frozen=True, slots=True)
class Told:
    """A note."""

    number: int
    controller: ControllerId
    pid: int
    state: ProcessState
    url: str
    """Where this very process answers its siblings; empty until it listens."""
    own: Own


def may_listen(*, is_ready: bool, waited_s: float, does_another_serve: bool) -> bool:
    """Whether a process that starts takes connections. One that is not ready would get its share of them and answer
    503, so it waits, unless there is nobody who could answer at all."""
    return is_ready or (waited_s >= UNREADY_AFTER_S and not does_another_serve)


def shared_out(settings: Settings, count: int) -> Settings:
    """For one of so many processes: what is limited per controller is shared out evenly, rounded up. What may wait is
    no less than the largest query, which else would find room in none of them."""
    own = settings.controller
    shares = {name: -(-int(getattr(own, name)) // count) for name in SHARED_OUT}
    shares["max_queue_bytes"] = min(own.max_queue_bytes, max(shares["max_queue_bytes"], own.max_body_bytes))
    return settings.model_copy(update={"controller": own.model_copy(update=shares)})


class Siblings:
    """`run` is eternal. Belongs to one event loop."""

    def __init__(self, seat: Seat, controller: ControllerId, clock: Clock) -> None:
        self._seat = seat
        self._controller = controller
        self._clock = clock
        self._state = ProcessState.STARTING
        self._url = ""
        self._read: Callable[[], Own] | None = None
        self._note = None if seat.is_alone else Note(seat.notes[seat.number - 1])
        self._other_notes = [Note(note) for number, note in enumerate(seat.notes, 1) if number != seat.number]

    @property
    def name(self) -> str:
        """Of the controller that all of them are."""
        return self._controller if self._seat.is_alone else self._seat.group

    @property
    def can_be(self) -> bool:
        """Whether there may be others at all, for whom `run` writes."""
        return not self._seat.is_alone

    @property
    def own_name(self) -> ControllerId:
        """Of this very process, which its decisions carry."""
        return self._controller

    def has(self, controller: ControllerId) -> bool:
        """Whether this is the name of another process of this controller, whether or not it lives."""
        return self._seat.has_neighbour(controller)

    def speak_with(self, read: Callable[[], Own]) -> None:
        """Say what `read` finds; nothing is written before."""
        self._read = read

    async def run(self) -> NoReturn:
        await every(WRITE_EVERY_S, self._write_in_time, clock=self._clock, name="siblings")

    def turn(self, state: ProcessState, url: str | None = None) -> None:
        """Say at once that the state is another."""
        self._state = state
        if url is not None:
            self._url = url
        self.write()

    def write(self) -> None:
        if self._note is not None and self._read is not None:
            self._note.write(encode(self._told(self._read())))

    def others(self) -> list[Told]:
        """Those that live and have said something."""
        found = []
        for note in self._other_notes:
            text = note.read()
            if text is None:
                continue
            try:
                found.append(decode(text, Told))
            except InvalidError as error:  # all of them are of one release
                _log.error("what another process says of itself cannot be read", reason=error.text)
        return found

    def urls(self) -> Mapping[ControllerId, str]:
        """Where each of the others answers by itself."""
        return {told.controller: told.url for told in self.others() if told.url}

    def does_another_serve(self) -> bool:
        return any(told.state is ProcessState.SERVING for told in self.others())

    def live(self) -> Live:
        """What the controller's gauges are counted from. What all see of the same cluster, those say who serve, if any
        do: one that is starting sees nothing yet, and one that ends has let go of it."""
        everybody = self.all()
        does_one_serve = any(told.state is ProcessState.SERVING for told in everybody)
        return together([_live(told, does_one_serve) for told in everybody])

    def all(self) -> list[Told]:
        """This one first."""
        if self._read is None:
            raise RuntimeError("nobody has said what this process is to say of itself")
        return [self._told(self._read()), *self.others()]

    def documents(self) -> tuple[ProcessDocument, ...]:
        return tuple(
            ProcessDocument(
                number=told.number,
                controller=told.controller,
                pid=told.pid,
                state=told.state.value,
                is_ready=told.own.is_ready,
                is_leader=told.own.is_leader,
                in_flight=told.own.live.in_flight,
                restarts=told.own.starts - 1,
            )
            for told in sorted(self.all(), key=_number)
        )

    async def _write_in_time(self) -> None:
        self.write()

    def _told(self, own: Own) -> Told:
        return Told(self._seat.number, self._controller, os.getpid(), self._state, self._url, own)


def _live(told: Told, does_one_serve: bool) -> Live:
    if told.state is ProcessState.SERVING:
        return told.own.live
    own = replace(told.own.live, processes=0)
    if not does_one_serve:
        return own
    return replace(own, workers={}, is_store_up=None, view_age_s=None, is_catalog_up=None)


def _number(told: Told) -> int:
    return told.number
