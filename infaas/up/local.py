"""`infaas up` itself: prepare the folder, start the programs, say when the system is ready, keep `up.json` true."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import infaas
from infaas import machine
from infaas.errors import InfaasError, SettingsError
from infaas.settings import Settings
from infaas.up import health, plan, preflight
from infaas.up.console import Console, LogFollower, ending, ready_text, status_line
from infaas.up.crew import Crew, Member
from infaas.up.plan import ProgramSpec
from infaas.up.record import (
    Endpoints,
    FolderLock,
    ProgramRecord,
    UpRecord,
    is_alive,
    read_endpoints,
    read_up,
    start_ticks,
    write_up,
)
from infaas.up.supervisor import Supervisor
from infaas.up.tether import GUARDIAN_PID

PROBE_EVERY_S = 0.05
ORPHAN_PATIENCE_S = 10.0


def up(settings: Settings, *, is_verbose: bool = False, console: Console | None = None) -> int:
    """Run a local system until a signal stops it. Returns the exit status: 0 after an orderly stop.

    Raises SettingsError or ConflictError, with nothing started, when it cannot run here.
    """
    console = console or Console()
    preflight.prepare_folder(settings.state_dir)
    preflight.check_exposure(settings)
    preflight.check_sharing(settings)
    lock = FolderLock(settings.state_dir)
    try:
        end_orphans(settings.state_dir, console)
        end_fleet(settings, console)
        preflight.clean_leftovers(settings.state_dir)
        preflight.check_ports(settings)
        specs = local_programs(settings)
        return run_programs(settings, specs, console, is_verbose=is_verbose)
    finally:
        lock.release()


def local_programs(settings: Settings) -> list[ProgramSpec]:
    """The table for this machine; with a private Redis unless the settings name one."""
    redis_argv: Sequence[str] | None = None
    if settings.store.redis_url is None:
        from infaas.store.server import find_redis_server, redis_command

        redis_argv = [str(word) for word in redis_command(find_redis_server(os.environ), settings.state_dir)]
    share = plan.Machine(machine.usable_cores(), machine.usable_memory_bytes())
    return plan.programs(settings, share, redis_argv)


def run_programs(
    settings: Settings, specs: Sequence[ProgramSpec], console: Console, *, is_verbose: bool = False
) -> int:
    """Supervise a table of programs in a prepared, locked folder."""
    state_dir = settings.state_dir
    specs = [replace(spec, env={**spec.env, GUARDIAN_PID: str(os.getpid())}) for spec in specs]
    preflight.rotate_logs(state_dir, [spec.name for spec in specs])
    supervisor = Supervisor(
        specs, lambda name: preflight.log_path(state_dir, name), draw=random.Random(os.getpid()).random
    )
    system = _LocalSystem(settings, specs, supervisor, console, is_verbose)
    console.say(f"Starting {', '.join(spec.name for spec in specs)} ...")
    system.begin()
    try:
        supervisor.start()
        supervisor.run(system)
    finally:
        system.end()
    console.say(f"infaas is down; its state stays in {state_dir}. `infaas up` brings it back.")
    return 0


def end_fleet(settings: Settings, console: Console, is_hurried: Callable[[], bool] = lambda: False) -> None:
    """Workers that our controllers had started are not among the programs, and end with them all the same; so do those
    of one that was killed. Those of others that share the folder are theirs. Raises SettingsError for a folder that
    cannot be used."""
    if settings.fleet.provider != "local":
        return

    def is_ours(member: Member) -> bool:
        guardian = member.guardian
        return guardian is not None and (guardian == os.getpid() or start_ticks(guardian) is None)

    crew, patience_s = Crew(settings.fleet_folder), settings.worker.drain_timeout_s + plan.EXTRA_STOP_S
    try:
        if any(is_ours(one) for one in crew.members()):
            console.say("Stopping the workers of the fleet ...")
            if left := crew.end_all(patience_s, is_ours, is_hurried):
                console.say(f"Workers of the fleet that did not end: {', '.join(left)}")
    except OSError as error:
        raise SettingsError(f"fleet.folder {str(settings.fleet_folder)!r} cannot be used: {error}") from error


def end_orphans(state_dir: Path, console: Console) -> None:
    """Programs of a supervisor that was killed were told to end when it died; wait for them, and in the end insist."""
    try:
        before = read_up(state_dir)
    except InfaasError:
        return  # Written by another version; its programs are tied to their supervisor just the same.
    orphans = [p for p in (before.programs if before else ()) if is_alive(p.pid, p.start_ticks)]
    if not orphans:
        return
    console.say(f"Waiting for {', '.join(p.name for p in orphans)} of the previous run to end ...")
    deadline = time.monotonic() + ORPHAN_PATIENCE_S
    for orphan in orphans:
        _signal(orphan, signal.SIGTERM)
    while any(is_alive(p.pid, p.start_ticks) for p in orphans) and time.monotonic() < deadline:
        time.sleep(PROBE_EVERY_S)
    for orphan in orphans:
        if is_alive(orphan.pid, orphan.start_ticks):
            _signal(orphan, signal.SIGKILL)


class _LocalSystem:
    """Turns what the supervisor reports into `up.json` and console lines, and finds out when all is ready."""

    def __init__(
        self,
        settings: Settings,
        specs: Sequence[ProgramSpec],
        supervisor: Supervisor,
        console: Console,
        is_verbose: bool,
    ) -> None:
        self._settings = settings
        self._state_dir = settings.state_dir
        self._supervisor = supervisor
        self._console = console
        self._workers = [spec.worker for spec in specs if spec.worker is not None]
        logs = [(spec.name, preflight.log_path(self._state_dir, spec.name)) for spec in specs]
        self._follower = LogFollower(logs if is_verbose else [])
        self._probe = _ReadinessProbe(
            self._state_dir, settings.token(), len(self._workers), settings.controller.processes, supervisor.wake
        )
        self._began = time.monotonic()
        self._seen: dict[str, float | None] = {}
        self._record = UpRecord(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            state="starting",
            version=infaas.__version__,
            state_dir=str(self._state_dir),
            started_at=time.time(),
            ready_after_s=None,
            programs=(),
        )

    def begin(self) -> None:
        write_up(self._record, self._state_dir)
        self._probe.start()

    def end(self) -> None:
        self._probe.end()
        self._say_logs()
        self._follower.close()
        self._record = replace(self._record, state="stopped", programs=self._supervisor.records())
        write_up(self._record, self._state_dir)

    def changed(self) -> None:
        programs = self._supervisor.records()
        for program in programs:
            if program.state in ("backing-off", "crash-loop") and self._seen.get(program.name) != program.last_exit_at:
                self._console.say(ending(program, time.time()))
            self._seen[program.name] = program.last_exit_at
        self._record = replace(self._record, programs=programs)
        write_up(self._record, self._state_dir)

    def tick(self) -> None:
        self._say_logs()
        is_stopping = self._supervisor.is_stopping
        if is_stopping and self._record.state != "stopping":
            self._record = replace(self._record, state="stopping")
            write_up(self._record, self._state_dir)
            self._console.say("Stopping: the controller finishes its queries first (a second signal stops at once) ...")
        elif self._probe.endpoints is not None and self._record.state == "starting":
            after_s = time.monotonic() - self._began
            self._record = replace(self._record, state="ready", ready_after_s=round(after_s, 3))
            write_up(self._record, self._state_dir)
            self._console.say(ready_text(self._probe.endpoints, self._workers, self._state_dir, after_s))
        wall = time.time()
        line = status_line(self._record.state, self._supervisor.records(), wall - self._record.started_at, wall)
        self._console.show(line)

    def stopped(self, is_hurried: Callable[[], bool]) -> None:
        end_fleet(self._settings, self._console, is_hurried)

    def _say_logs(self) -> None:
        for line in self._follower.lines():
            self._console.say(line)


class _ReadinessProbe:
    """Asks, on a thread of its own, until every process of the controller is ready and every worker connected to it."""

    def __init__(
        self, state_dir: Path, token: str | None, workers: int, processes: int, wake: Callable[[], None]
    ) -> None:
        self.endpoints: Endpoints | None = None
        self._state_dir = state_dir
        self._token = token
        self._workers = workers
        self._processes = processes
        self._wake = wake
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness-probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(PROBE_EVERY_S):
            endpoints = read_endpoints(self._state_dir)
            if endpoints is None or not health.is_ready(endpoints):
                continue
            if health.serving_processes(endpoints, self._token) < self._processes:
                continue
            if health.connected_workers(endpoints, self._token) >= self._workers:
                self.endpoints = endpoints
                self._wake()
                return


def _signal(program: ProgramRecord, number: int) -> None:
    try:
        if program.pid is not None:
            os.kill(program.pid, number)
    except ProcessLookupError:
        return  # It ended in between, which is what was wanted.
