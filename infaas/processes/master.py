"""The master of several processes that are one controller: it takes the ports, starts the processes, and starts again
whichever ends. It serves nothing itself, and imports nothing of what it starts.

A process that ends is replaced at once, then with growing pauses. Until one has served for the first time the master
ends as a lone controller would, with the status of the first that failed, so that whoever started it is told. When it
is asked to stop, all processes are, and each finishes what it has.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from infaas.domain.ids import fresh_id
from infaas.errors import UnavailableError
from infaas.observe.log import get_logger
from infaas.processes.notes import Note
from infaas.processes.ports import port_of, reserve
from infaas.processes.seat import Seat
from infaas.settings import Settings
from infaas.up.plan import EXTRA_STOP_S, ProgramSpec, overrides_environ
from infaas.up.record import controller_file, read_endpoints
from infaas.up.restart import ProgramState, RestartRule
from infaas.up.supervisor import Supervised, Supervisor

RULE = RestartRule(at_once=1)
PORTS = ("http_port", "grpc_port", "metrics_port")
_log = get_logger(__name__)


def run(settings: Settings) -> int:
    """Until a signal; returns the exit status. Raises SettingsError for a port that cannot be had."""
    own = settings.controller
    controller_file(settings.state_dir).unlink(missing_ok=True)
    holders: dict[str, socket.socket] = {}
    try:
        for name in PORTS:
            holders[name] = reserve(own.host, int(getattr(own, name)), f"controller.{name}")
        ports = {name: port_of(holder) for name, holder in holders.items()}
        seats = make_seats(own.processes, fresh_id("c"))
        drain_s = own.drain_timeout_s + EXTRA_STOP_S
        supervisor = Supervisor(
            [process(seat, ports, drain_s) for seat in seats],
            lambda _: None,
            draw=random.Random(os.getpid()).random,
            rule=RULE,
        )
        watch = Watch(settings, supervisor, seats)
        _log.info("controller starts its processes", controller=seats[0].group, processes=len(seats), **ports)
        supervisor.start()
        supervisor.run(watch)
    finally:
        for holder in holders.values():
            holder.close()
    return watch.status


def make_seats(count: int, group: str) -> list[Seat]:
    """With memory that lives as long as this process."""
    numbers = tuple(os.memfd_create(f"infaas-numbers-{number}") for number in range(1, count + 1))
    notes = tuple(os.memfd_create(f"infaas-note-{number}") for number in range(1, count + 1))
    first = Seat(1, count, group, os.getpid(), numbers, notes)
    return [replace(first, number=number) for number in range(1, count + 1)]


def process(seat: Seat, ports: dict[str, int], stop_timeout_s: float) -> ProgramSpec:
    """What starts the process of a seat, now and after each of its ends."""
    return ProgramSpec(
        f"controller-{seat.number}",
        (sys.executable, "-m", "infaas.programs", "controller"),
        {**overrides_environ({"controller": ports}), **seat.environ()},
        stop_timeout_s=stop_timeout_s,
        descriptors=seat.descriptors,
    )


class Watch:
    """Sees to what the end of a process leaves behind. An observer of the supervisor, on its thread."""

    def __init__(self, settings: Settings, supervisor: Supervisor, seats: Sequence[Seat]) -> None:
        self._state_dir = settings.state_dir
        self._supervisor = supervisor
        self._seats = seats
        self._seen: dict[int, float] = {}
        self._has_served = False
        self.status = 0
        """What the master is to end with."""

    def changed(self) -> None:
        for seat, program in zip(self._seats, self._supervisor.programs, strict=True):
            if program.last_exit_at is not None and self._seen.get(seat.number) != program.last_exit_at:
                self._seen[seat.number] = program.last_exit_at
                self._ended(seat, program)
        if self._supervisor.is_stopping:
            self._withdraw()

    def stopped(self, is_hurried: Callable[[], bool]) -> None:
        """Nothing is left to do then."""

    def tick(self) -> None:
        if self._supervisor.is_stopping:
            self._withdraw()
        elif not self._has_served:
            self._has_served = self._is_announced()

    def _ended(self, seat: Seat, program: Supervised) -> None:
        Note(seat.notes[seat.number - 1]).tear_up()
        self._has_served = self._has_served or self._is_announced()
        log = _log.error if program.life.state is ProgramState.CRASH_LOOP else _log.warning
        log(
            "a process of the controller ended",
            process=seat.number,
            reason=program.life.last_exit,
            quick_ends=program.life.quick_exits,
            state=program.life.state.value,
        )
        if not self._has_served:
            status = program.last_status or 0
            self.status = status if status > 0 else 1
            self._supervisor.stop()

    def _is_announced(self) -> bool:
        """The first process that listens says so, in the master's name."""
        try:
            endpoints = read_endpoints(self._state_dir)
        except UnavailableError as error:  # a file that cannot be read is no reason to end what serves
            _log.warning("the announcement cannot be read", reason=error.text)
            return False
        return endpoints is not None and endpoints.pid == os.getpid()

    def _withdraw(self) -> None:
        if self._is_announced():
            controller_file(self._state_dir).unlink(missing_ok=True)
