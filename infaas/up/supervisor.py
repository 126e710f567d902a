"""Starts programs, watches them, starts them again by the rule of `restart`, and stops them in order.

One thread owns every process: `PR_SET_PDEATHSIG` fires when the *thread* that started a child ends, so children are
started from the thread that calls `run`, which must be the main one because it also takes the signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from infaas.up import restart
from infaas.up.plan import ProgramSpec
from infaas.up.record import ProgramRecord, start_ticks
from infaas.up.restart import Life, RestartRule
from infaas.up.tether import SUPERVISOR_PID

TICK_S = 0.25
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RULE = RestartRule()


class Observer(Protocol):
    """What is told about the supervised programs, from the supervisor's own thread."""

    def changed(self) -> None:
        """Some program started, ended or is about to be stopped."""

    def tick(self) -> None:
        """A moment passed, or something called `Supervisor.wake`."""

    def stopped(self, is_hurried: Callable[[], bool]) -> None:
        """All programs have been stopped; signals are still taken. `is_hurried`: somebody wants it done at once."""


class Supervised:
    """One program: its command, the process that runs it now, and its life so far."""

    def __init__(self, spec: ProgramSpec, log: Path | None) -> None:
        self.spec = spec
        self.log = log
        """None: it writes where we do."""
        self.life = Life()
        self.process: subprocess.Popen[bytes] | None = None
        self.ticks: int | None = None
        self.last_exit_at: float | None = None
        self.last_status: int | None = None

    def record(self, now: float, wall: float) -> ProgramRecord:
        due = self.life.next_try_at
        return ProgramRecord(
            name=self.spec.name,
            state=self.life.state.value,
            pid=self.process.pid if self.process else None,
            start_ticks=self.ticks if self.process else None,
            restarts=self.life.restarts,
            quick_exits=self.life.quick_exits,
            last_exit=self.life.last_exit,
            last_exit_at=self.last_exit_at,
            next_try_at=None if due is None else wall + (due - now),
            log="" if self.log is None else str(self.log),
        )


class Supervisor:
    """Owns the children from `start` until `run` returns; after that none is left.

    `draw` gives numbers in [0, 1) for the jitter of restarts.
    """

    def __init__(
        self,
        specs: Sequence[ProgramSpec],
        logs: Callable[[str], Path | None],
        *,
        draw: Callable[[], float],
        rule: RestartRule = RULE,
    ) -> None:
        self._rule = rule
        self._draw = draw
        self.programs = [Supervised(spec, logs(spec.name)) for spec in specs]
        self._stop_requests = 0
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self) -> None:
        """Start every program at once."""
        for program in self.programs:
            self._start(program)

    def run(self, observer: Observer) -> None:
        """Watch until SIGTERM, SIGINT, SIGHUP or `stop`; then stop everything in order. A second signal kills."""
        before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_stop)
            signal.signal(signal.SIGCHLD, _ignore)
            observer.changed()
            while not self._stop_requests:
                self._wait(TICK_S)
                if self._watch():
                    observer.changed()
                observer.tick()
            self._stop_all(observer)
            observer.stopped(lambda: self._stop_requests > 1)
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._reader)
            os.close(self._writer)
        observer.changed()

    def stop(self) -> None:
        """Ask `run` to stop everything and return."""
        self._stop_requests += 1
        self.wake()

    def wake(self) -> None:
        """Make `run` look up now; may be called from any thread while it runs."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"\0")

    @property
    def is_stopping(self) -> bool:
        return self._stop_requests > 0

    def records(self) -> tuple[ProgramRecord, ...]:
        now, wall = time.monotonic(), time.time()
        return tuple(program.record(now, wall) for program in self.programs)

    def _on_stop(self, number: int, frame: object) -> None:
        self._stop_requests += 1

    def _wait(self, seconds: float) -> None:
        """Until a signal, a wake-up, the next program is due, or the time is over."""
        now = time.monotonic()
        due = [p.life.next_try_at - now for p in self.programs if p.life.next_try_at is not None]
        timeout = max(0.0, min([seconds, *due]))
        readable, _, _ = select.select([self._reader], [], [], timeout)
        if readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)

    def _watch(self) -> bool:
        """Take note of ended programs and start those that are due; whether anything changed."""
        changed = False
        for program in self.programs:
            status = program.process.poll() if program.process else None
            if status is not None:
                program.process = None
                program.last_exit_at = time.time()
                program.last_status = status
                program.life = restart.exited(program.life, status, time.monotonic(), self._rule, self._draw())
                changed = True
            elif restart.is_due(program.life, time.monotonic()):
                self._start(program)
                changed = True
        return changed

    def _start(self, program: Supervised) -> None:
        spec = program.spec
        argv = [word.replace("{supervisor}", str(os.getpid())) for word in spec.argv]
        env = {**os.environ, **spec.env, SUPERVISOR_PID: str(os.getpid())}
        with contextlib.ExitStack() as files:
            log = None if program.log is None else files.enter_context(program.log.open("ab"))
            # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops in order.
            program.process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=spec.descriptors,
            )
        program.ticks = start_ticks(program.process.pid)
        program.life = restart.started(program.life, time.monotonic())

    def _stop_all(self, observer: Observer) -> None:
        """Stage by stage: ask, wait for as long as each may take, then kill."""
        for stage in sorted({program.spec.stop_stage for program in self.programs}):
            members = [p for p in self.programs if p.spec.stop_stage == stage]
            for program in members:
                if program.process is None:
                    program.life = restart.stopped(program.life, None)
                else:
                    program.process.send_signal(signal.SIGTERM)
            asked_at = time.monotonic()
            while any(p.process for p in members) and self._stop_requests < 2:
                observer.tick()
                self._wait(TICK_S)
                self._collect(members, time.monotonic() - asked_at)
            observer.changed()

    def _collect(self, members: Sequence[Supervised], waited_s: float) -> None:
        for program in members:
            if program.process is None:
                continue
            status = program.process.poll()
            if status is None and waited_s >= program.spec.stop_timeout_s:
                program.process.kill()
                status = program.process.wait()
            if status is not None:
                program.process = None
                program.life = restart.stopped(program.life, status)

    def _kill_all(self) -> None:
        """Nothing outlives `run`, whatever ended it."""
        for program in self.programs:
            if program.process is not None:
                program.process.kill()
                program.life = restart.stopped(program.life, program.process.wait())
                program.process = None


def _ignore(number: int, frame: object) -> None:
    """The wake-up pipe says it; a handler must exist for that."""
