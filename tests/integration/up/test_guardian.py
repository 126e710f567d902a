"""A program that must not outlive another one which is not its parent: its guardian."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from infaas.up.tether import GUARDIAN_PID

PATIENCE_S = 40.0
SOON_S = 30.0
"""It looks every second, and the machine may be busy."""

# It says why it ends.
GUARDED = f"""
import os, signal
from infaas.up.tether import end_with
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
end_with(int(os.environ["{GUARDIAN_PID}"]))
print("hello", flush=True)
print(signal.sigtimedwait({{signal.SIGTERM}}, 600).si_signo == signal.SIGTERM, flush=True)
"""


class Programs:
    """Processes of a test, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[subprocess.Popen[str]] = []

    def guardian(self) -> subprocess.Popen[str]:
        return self._start(["/bin/sleep", "600"], {})

    def guarded(self, guardian_pid: int) -> subprocess.Popen[str]:
        return self._start([sys.executable, "-c", GUARDED], {GUARDIAN_PID: str(guardian_pid)})

    def worker(self, guardian_pid: int) -> subprocess.Popen[str]:
        """A real one, without a store."""
        told = {
            "INFAAS_STATE_DIR": str(self.folder),
            "INFAAS_STORE__REDIS_URL": f"unix://{self.folder}/nobody.sock",
            "INFAAS_WORKER__ID": "w1",
            "INFAAS_WORKER__CORES": "1",
            GUARDIAN_PID: str(guardian_pid),
        }
        return self._start([sys.executable, "-m", "infaas.programs", "worker"], told)

    def clear(self) -> None:
        for one in self._all:
            one.kill()
            one.communicate()

    def _start(self, command: list[str], told: Mapping[str, str]) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
        process = subprocess.Popen(
            command, env={**environ, **told}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._all.append(process)
        return process


@pytest.fixture
def programs() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        found = Programs(Path(folder))
        try:
            yield found
        finally:
            found.clear()


def wait_until(question: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("is_reaped", [True, False], ids=["reaped", "left unreaped"])
def test_a_program_is_asked_to_end_soon_after_its_guardians_death(programs: Programs, is_reaped: bool) -> None:
    guardian = programs.guardian()
    guarded = programs.guarded(guardian.pid)
    assert guarded.stdout is not None
    assert guarded.stdout.readline() == "hello\n"
    assert guarded.poll() is None

    guardian.kill()
    if is_reaped:
        guardian.wait()

    assert guarded.wait(SOON_S) == 0
    assert guarded.stdout.read() == "True\n"


def test_a_worker_ends_in_order_after_its_guardians_death(programs: Programs) -> None:
    guardian = programs.guardian()
    worker = programs.worker(guardian.pid)
    run = programs.folder / "run"
    wait_until(lambda: (run / "worker-w1.sock").exists() or worker.poll() is not None, "the worker to listen")
    assert worker.poll() is None

    guardian.kill()

    said, _ = worker.communicate(timeout=SOON_S)
    assert worker.returncode == 0, said
    assert list(run.iterdir()) == []


def test_a_program_does_not_start_without_its_guardian(programs: Programs) -> None:
    guardian = programs.guardian()
    guardian.kill()
    guarded, worker = programs.guarded(guardian.pid), programs.worker(guardian.pid)  # dead, and not reaped
    guardian.wait()
    late = programs.worker(guardian.pid)

    for one in (guarded, worker, late):
        said, _ = one.communicate(timeout=PATIENCE_S)
        assert one.returncode == 1
        assert said == f"the guardian (pid {guardian.pid}) is gone; not starting without it\n"
    assert list(programs.folder.iterdir()) == []
