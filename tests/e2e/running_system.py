"""A whole system as its users have it: brought up, used and taken down by the `infaas` command, with real traffic.

Nothing here naps: every wait is for something the system itself says, and gives up loudly after `PATIENCE_S`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from infaas.client import Client, QueryError, Requirements
from infaas.client_tensors import Array
from infaas.demo import family
from infaas.errors import InfaasError
from infaas.up.record import Endpoints, ProgramRecord, UpRecord, is_alive, is_up, read_endpoints, read_up

PATIENCE_S = 90.0
LOOK_EVERY_S = 0.02
INFAAS = Path(sys.executable).with_name("infaas")
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
TASK = "digits"
SIMPLE_TASK = "simple"
SIMPLE_MODEL = "simple-sum"
_ANY = Requirements(slo_accuracy_min=0.0)
Found = TypeVar("Found")


def wait_for(question: Callable[[], Found], what: str, patience_s: float = PATIENCE_S) -> Found:
    """The first answer that is true."""
    deadline = time.monotonic() + patience_s
    while not (found := question()):
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}"
        time.sleep(LOOK_EVERY_S)
    return found


class System:
    """One state folder and the `infaas up` in it. `close` leaves no process behind, whatever a test did."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        self.environ |= {"INFAAS_STATE_DIR": str(folder), "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.3"}
        self.environ |= settings or {}

    def infaas(self, *words: str | Path, expect: int | None = 0, timeout_s: float = PATIENCE_S) -> str:
        """Run the command as a user does; returns what it printed, both streams. `expect`: its exit status."""
        done = self._run(words, timeout_s)
        said = done.stdout + done.stderr
        assert expect in (None, done.returncode), f"infaas {' '.join(map(str, words))}: {done.returncode}\n{said}"
        return said

    def json(self, *words: str | Path) -> Any:
        """What a command prints for scripts."""
        done = self._run((*words, "-o", "json"), PATIENCE_S)
        assert done.returncode == 0, f"infaas {' '.join(map(str, words))}: {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def _run(self, words: Sequence[str | Path], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [INFAAS, *words], env=self.environ, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def up(self, *flags: str) -> None:
        """Returns when the system says that it is ready."""
        self.infaas("up", "--detach", *FREE_PORTS, *flags)

    def down(self) -> None:
        """Asserts an orderly end: all processes are gone, and each ended by itself."""
        before, processes = self.record, self.processes()
        self.infaas("down")
        assert not is_up(before)
        assert not left_of(processes)
        assert {program.last_exit for program in self.record.programs} == {"exit code 0"}

    def close(self) -> None:
        """For the end of a test that did not get to `down`."""
        record = read_up(self.folder) if self.folder.exists() else None
        if record is None:
            return
        if is_up(record):
            os.kill(record.pid, signal.SIGKILL)
        # The programs are tied to their supervisor; a test that ends here must not leave them to others all the same.
        wait_for(
            lambda: not any(is_alive(program.pid, program.start_ticks) for program in record.programs),
            "the programs of a killed supervisor to end",
        )

    @property
    def record(self) -> UpRecord:
        found = read_up(self.folder)
        assert found is not None
        return found

    @property
    def endpoints(self) -> Endpoints:
        """Where the controller listens now; a restart moves it when its port is free to choose."""
        return wait_for(lambda: read_endpoints(self.folder), "a controller that listens")

    def client(self, token: str | None = None) -> Client:
        return Client(self.endpoints.url, token, timeout_s=PATIENCE_S)

    def program(self, name: str) -> ProgramRecord:
        return next(program for program in self.record.programs if program.name == name)

    def processes(self) -> list[psutil.Process]:
        """The supervisor, its programs, and theirs."""
        supervisor = psutil.Process(self.record.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def kill(self, name: str) -> ProgramRecord:
        """As a crash does. Returns what was recorded of the program until then."""
        before = self.program(name)
        assert is_alive(before.pid, before.start_ticks)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        return before

    def wait_restarted(self, before: ProgramRecord) -> None:
        def is_back() -> bool:
            now = self.program(before.name)
            return now.restarts > before.restarts and now.state == "running" and is_alive(now.pid, now.start_ticks)

        wait_for(is_back, f"the supervisor to start {before.name} again")

    def register(self, model: family.FamilyModel, *flags: str) -> str:
        """A member of the digits family, by the command line."""
        renames = [word for rename in model.renames for word in ("--map", rename)]
        words = ("--task", TASK, "--name", model.name, "--eval", family.path(family.EVAL_FILE), *renames, *flags)
        return self.infaas("model", "register", family.path(model.file), *words)

    def register_simple(self, *flags: str) -> str:
        words = ("--task", SIMPLE_TASK, "--name", SIMPLE_MODEL, "--eval", family.path(family.SIMPLE_EVAL_FILE), *flags)
        return self.infaas("model", "register", family.path(family.SIMPLE_FILE), *words)


@contextmanager
def running(folder: Path, settings: Mapping[str, str] | None = None, *flags: str) -> Iterator[System]:
    """Up, then down in order; a test that failed half-way leaves no process behind either."""
    system = System(folder, settings)
    try:
        system.up(*flags)
        yield system
        system.down()
    finally:
        system.close()


def left_of(processes: Sequence[psutil.Process]) -> list[str]:
    """Those that still run; one that only its parent has not noted the end of does not."""
    left = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.NoSuchProcess:
            continue
    return left


def member(name: str) -> family.FamilyModel:
    return next(model for model in family.FAMILY if model.name == name)


@dataclass(frozen=True)
class Scans:
    """The held-out scans."""

    images: Array
    labels: Array

    def rows(self, first: int, count: int = 1) -> dict[str, Array]:
        return {family.INPUT: self.images[(np.arange(count) + first) % len(self.images)]}


def read_scans() -> Scans:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        return Scans(data[family.INPUT], data["label"])


def ask_until_answered(client: Client, handle: str, scans: Scans, requirements: Requirements | None = None) -> str:
    """Retries what a retry can mend, as the error says. Returns the variant that served."""

    def served() -> str | None:
        try:
            return client.infer(handle, scans.rows(0), requirements).served.variant
        except InfaasError as error:
            if error.is_retryable:
                return None
            raise

    return wait_for(served, f"an answer of {handle}")


@dataclass(frozen=True)
class Sent:
    """How one query of the traffic ended, as its caller saw it."""

    began: float
    version: str | None
    variant: str | None
    error: str | None


class Traffic:
    """Callers that ask one handle without a pause until the end of a `with` block, and remember every outcome."""

    def __init__(self, url: str, handle: str, scans: Scans, callers: int = 2) -> None:
        self._url = url
        self._handle = handle
        self._scans = scans
        self._sent: list[Sent] = []
        self._news = threading.Condition()
        self._over = threading.Event()
        self._callers = [threading.Thread(target=self._call, args=(n,), name=f"caller-{n}") for n in range(callers)]

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        for caller in self._callers:
            caller.start()
        try:
            self.wait_for_more(4)
            yield self
        finally:
            self._over.set()
            for caller in self._callers:
                caller.join()

    @property
    def sent(self) -> list[Sent]:
        with self._news:
            return list(self._sent)

    @property
    def failed(self) -> list[Sent]:
        return [one for one in self.sent if one.error is not None]

    def wait_for_more(self, count: int = 20) -> list[Sent]:
        """Outcomes of the next `count` queries that begin from now on."""
        now = time.monotonic()

        def later() -> list[Sent]:
            return [one for one in self._sent if one.began >= now]

        with self._news:
            assert self._news.wait_for(lambda: len(later()) >= count, PATIENCE_S), "the traffic stands still"
            return later()

    def _call(self, number: int) -> None:
        at = number * 100
        with Client(self._url, timeout_s=PATIENCE_S) as client:
            while not self._over.is_set():
                at += 1
                began = time.monotonic()
                try:
                    answer = client.infer(self._handle, self._scans.rows(at))
                    outcome = Sent(began, answer.version, answer.served.variant, None)
                except QueryError as error:
                    outcome = Sent(began, None, error.served.variant, f"{error.code.value}: {error.text}")
                except InfaasError as error:
                    outcome = Sent(began, None, None, f"{error.code.value}: {error.text}")
                with self._news:
                    self._sent.append(outcome)
                    self._news.notify_all()


class Callers:
    """Each asks again as soon as it is answered, or after a rest, four rows at a time, and compares with its first
    answer."""

    def __init__(self, system: System, variant: str, scans: Scans, callers: int, *, rest_s: float = 0.0) -> None:
        self._rest_s = rest_s
        self._system = system
        self._variant = variant
        self._scans = scans
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(first,)) for first in range(callers)]
        self.answers = 0
        self.mixed_up = 0
        self.failures: list[QueryError] = []
        self._lock = threading.Lock()

    def _ask(self, first: int) -> None:
        rows = self._scans.rows(first, 4)
        with self._system.client() as client:
            expected = client.infer(self._variant, rows, _ANY).outputs[family.OUTPUT]
            while not self._end.wait(self._rest_s):
                try:
                    found = client.infer(self._variant, rows, _ANY).outputs[family.OUTPUT]
                except QueryError as error:
                    self.failures.append(error)
                    continue
                with self._lock:
                    self.answers += 1
                    self.mixed_up += not (found.argmax(axis=1) == expected.argmax(axis=1)).all()

    @contextmanager
    def asking(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()
