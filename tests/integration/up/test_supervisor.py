"""The supervisor with real processes: small programs stand in for the components, nothing of ours is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infaas.errors import ConflictError, NotFoundError
from infaas.settings import load_settings
from infaas.up import detached, preflight
from infaas.up.record import UpRecord, is_alive, is_up, read_up

PATIENCE_S = 40.0

# What a test's supervisor runs: a table of programs from JSON, in a prepared and locked folder.
SUPERVISE = """
import json, os, sys
from pathlib import Path
from infaas.settings import load_settings
from infaas.up import preflight
from infaas.up.console import Console
from infaas.up.local import end_orphans, run_programs
from infaas.up.plan import ProgramSpec
from infaas.up.record import FolderLock

settings = load_settings()
preflight.prepare_folder(settings.state_dir)
lock = FolderLock(settings.state_dir)
end_orphans(settings.state_dir, Console())
specs = [ProgramSpec(**spec) for spec in json.loads(sys.argv[1])]
sys.exit(run_programs(settings, specs, Console(), is_verbose=len(sys.argv) > 2))
"""

# A well-behaved program: it says that it runs, and ends in order when asked.
STEADY = """
import os, signal, sys
sys.path.insert(0, os.environ["HERE"])
from infaas.up.tether import SUPERVISOR_PID, die_with
die_with(int(os.environ[SUPERVISOR_PID]))
print("hello from", os.environ["NAME"], flush=True)
signal.sigwait({signal.SIGTERM})
with open(os.environ["ORDER"], "a") as order:
    order.write(os.environ["NAME"] + "\\n")
"""
BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});"


def wait_until(question: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


class Up:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = folder / "order"
        self.order.touch()
        self.process: subprocess.Popen[str] | None = None

    def steady(self, name: str, stage: int = 0) -> dict[str, object]:
        env = {"NAME": name, "ORDER": str(self.order), "HERE": str(Path.cwd())}
        return self.program(name, BLOCKED + STEADY, stage, env)

    def program(self, name: str, code: str, stage: int = 0, env: dict[str, str] | None = None) -> dict[str, object]:
        return {
            "name": name,
            "argv": (sys.executable, "-c", code),
            "env": env or {},
            "stop_stage": stage,
            "stop_timeout_s": 1.0,
        }

    def start(self, programs: list[dict[str, object]], *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, json.dumps(programs), *flags],
            env={**os.environ, "INFAAS_STATE_DIR": str(self.folder / "s")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def state_dir(self) -> Path:
        return self.folder / "s"

    def record(self) -> UpRecord:
        found = read_up(self.state_dir)
        assert found is not None
        return found

    def running(self, count: int) -> bool:
        found = read_up(self.state_dir)
        return found is not None and sum(p.state == "running" for p in found.programs) == count

    def states(self) -> list[str]:
        found = read_up(self.state_dir)
        return [] if found is None else [p.state for p in found.programs]

    def said(self, name: str) -> str:
        log = preflight.log_path(self.state_dir, name)
        return log.read_text() if log.exists() else ""

    def output(self) -> str:
        assert self.process is not None
        return self.process.communicate(timeout=PATIENCE_S)[0]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    system = Up(tmp_path)
    yield system
    if system.process is not None:
        system.process.kill()
        system.process.communicate()


def test_programs_start_together_and_stop_stage_by_stage(up: Up) -> None:
    up.start([up.steady("store", 2), up.steady("worker", 1), up.steady("controller", 0)])
    wait_until(lambda: all("hello" in up.said(n) for n in ("store", "worker", "controller")), "all three to run")

    stopped = detached.stop(up.state_dir)

    assert up.order.read_text().split() == ["controller", "worker", "store"]
    assert up.process is not None
    assert up.process.wait(PATIENCE_S) == 0
    assert not is_up(stopped)
    assert {(p.name, p.state, p.last_exit) for p in up.record().programs} == {
        (name, "stopped", "exit code 0") for name in ("store", "worker", "controller")
    }
    assert up.record().state == "stopped"


def test_a_killed_program_is_started_again_and_its_end_is_on_record(up: Up) -> None:
    up.start([up.steady("worker")])
    wait_until(lambda: "hello" in up.said("worker"), "the worker to run")
    before = up.record().programs[0]
    assert before.pid is not None

    os.kill(before.pid, signal.SIGKILL)

    wait_until(lambda: up.said("worker").count("hello") == 2, "the worker to run again")
    wait_until(lambda: up.record().programs[0].restarts == 1, "the record to tell")
    after = up.record().programs[0]
    assert (after.state, after.last_exit) == ("running", "killed by SIGKILL")
    assert after.pid != before.pid


def test_a_program_with_wrong_settings_is_shown_as_a_crash_loop_while_the_others_run(up: Up) -> None:
    up.start([up.program("bad", "import sys; print('unknown setting x'); sys.exit(2)"), up.steady("good")])

    wait_until(lambda: "crash-loop" in up.states(), "the crash loop to show")
    wait_until(lambda: "hello" in up.said("good"), "the other one to run")

    bad = next(p for p in up.record().programs if p.name == "bad")
    assert bad.last_exit == "exit code 2 (wrong settings)"
    assert bad.next_try_at is not None
    detached.stop(up.state_dir)
    output = up.output()
    assert "bad is in a crash loop: exit code 2 (wrong settings)" in output
    assert "unknown setting x" in output


def test_when_the_supervisor_is_killed_its_programs_end(up: Up) -> None:
    up.start([up.steady("worker")])
    wait_until(lambda: "hello" in up.said("worker"), "the worker to run")
    worker = up.record().programs[0]
    assert up.process is not None

    up.process.kill()

    wait_until(lambda: not is_alive(worker.pid, worker.start_ticks), "the worker to end")
    assert not is_up(up.record())


def test_a_program_that_ignores_the_request_is_killed_after_its_time(up: Up) -> None:
    up.start([up.program("stubborn", BLOCKED + "print('hello', flush=True); signal.sigwait({signal.SIGUSR1})")])
    wait_until(lambda: "hello" in up.said("stubborn"), "the program to run")

    detached.stop(up.state_dir)

    assert up.record().programs[0].last_exit == "killed by SIGKILL"


def test_a_second_signal_stops_at_once(up: Up) -> None:
    stubborn = up.program("stubborn", BLOCKED + "print('hello', flush=True); signal.sigwait({signal.SIGUSR1})")
    up.start([{**stubborn, "stop_timeout_s": 1000.0}])
    wait_until(lambda: "hello" in up.said("stubborn"), "the program to run")

    detached.stop(up.state_dir, is_forced=True)

    assert up.record().programs[0].last_exit == "killed by SIGKILL"


def test_the_next_start_waits_for_the_programs_of_a_killed_supervisor(up: Up) -> None:
    """A draining worker outlives its killed supervisor for a while; two generations must not overlap."""
    slow = """
import os
from infaas.up.tether import SUPERVISOR_PID, die_with
die_with(int(os.environ[SUPERVISOR_PID]))
print("hello", flush=True)
while True:
    signal.sigwait({signal.SIGTERM})
    if os.path.exists(os.environ["LET_GO"]):
        break
"""
    let_go = up.folder / "let-go"
    program = up.program("slow", BLOCKED + slow, env={"LET_GO": str(let_go)})
    up.start([program])
    wait_until(lambda: "hello" in up.said("slow"), "the program to run")
    old = up.record().programs[0]
    assert up.process is not None
    up.process.kill()
    up.process.communicate()
    assert is_alive(old.pid, old.start_ticks)

    let_go.touch()
    up.start([program])

    wait_until(lambda: is_up(read_up(up.state_dir)) and up.running(1), "the next generation")
    assert not is_alive(old.pid, old.start_ticks)


def test_verbose_shows_the_programs_lines_with_their_names(up: Up) -> None:
    up.start([up.steady("worker"), up.steady("controller")], "--verbose")
    wait_until(lambda: all("hello" in up.said(n) for n in ("worker", "controller")), "both to run")

    detached.stop(up.state_dir)

    output = up.output()
    assert "worker     | hello from worker" in output
    assert "controller | hello from controller" in output


def test_stopping_what_is_not_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing is up in"):
        detached.stop(tmp_path)


def test_a_reused_process_id_is_not_taken_for_the_supervisor(up: Up) -> None:
    up.start([up.steady("worker")])
    wait_until(lambda: up.running(1), "the worker to run")
    record = up.record()
    stranger = UpRecord(**{**{f: getattr(record, f) for f in record.__slots__}, "start_ticks": 1})

    assert is_up(record)
    assert not is_up(stranger)


def test_the_tether_becomes_the_program_it_ties(tmp_path: Path) -> None:
    tether = [sys.executable, "-I", "-S", "infaas/up/tether.py"]

    said = subprocess.run([*tether, str(os.getpid()), "--", "/bin/echo", "tied"], capture_output=True, text=True)
    orphan = subprocess.run([*tether, "1", "--", "/bin/echo", "tied"], capture_output=True, text=True)

    assert (said.returncode, said.stdout) == (0, "tied\n")
    assert orphan.returncode != 0
    assert "the supervisor (pid 1) is gone" in orphan.stderr


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    from infaas.up.record import FolderLock

    preflight.prepare_folder(folder)
    lock = FolderLock(folder)
    yield
    lock.release()


def test_up_on_a_folder_that_is_up_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from infaas.up.local import up as bring_up

    settings = load_settings(environ={}, overrides={"state_dir": str(tmp_path)})
    with held_folder(tmp_path), pytest.raises(ConflictError, match="already up"):
        bring_up(settings)
    assert list((tmp_path / "logs").iterdir()) == []
