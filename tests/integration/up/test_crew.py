"""A crew with real processes: whoever starts, looks or ends, and how many do, each member has one life."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from infaas.up.crew import LOGS_KEPT, Crew, Member, MemberState

PATIENCE_S = 40.0
NEVER_S = 1000.0
"""A patience that no test waits out."""
ENVIRON = {"LC_ALL": "C.UTF-8", "GIVEN": "to it"}
PYTHON = (sys.executable, "-I", "-S", "-c")
LIFELINE = Path("infaas/up/lifeline.py").absolute()

STEADY = ("/bin/sh", "-c", "echo hello; exec sleep 600")
BRIEF = ("/bin/sh", "-c", "echo hello")
# It says that it was asked to end, and ends once it may.
PATIENT = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("hello", flush=True)
signal.sigwait({signal.SIGTERM})
print("asked", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("finished", flush=True)
"""
STUBBORN = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("hello", flush=True)
signal.sigtimedwait({signal.SIGUSR1}, 600)
"""
# What other processes do with a crew: `CODE FOLDER IDS...`.
START = """
import sys
from pathlib import Path
from infaas.up.crew import Crew
crew = Crew(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for id in sys.argv[2:]:
    crew.start(id, ("/bin/sh", "-c", "echo hello; exec sleep 600"), {"LC_ALL": "C.UTF-8"}, b"by another")
"""
END = """
import sys, time
from pathlib import Path
from infaas.up.crew import Crew
crew = Crew(Path(sys.argv[1]))
print([(one.id, one.state.value) for one in crew.members()])
crew.end_all(1000.0)
"""


class Ship:
    """A crew's folder, seen from outside: who runs is told by whose output goes to a log in it, not by the crew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._crews: list[Crew] = []
        self._others: list[subprocess.Popen[str]] = []

    def crew(self) -> Crew:
        """Each as another process would have it."""
        self._crews.append(Crew(self.folder))
        return self._crews[-1]

    def another(self, code: str, *ids: str) -> subprocess.Popen[str]:
        """Another process that uses a crew of this folder."""
        command = [sys.executable, "-c", code, str(self.folder), *ids]
        pipe = subprocess.PIPE
        self._others.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return self._others[-1]

    def running(self) -> list[int]:
        """Processes; one that has died and was not reaped has no open files."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                output = os.readlink(process / "fd" / "1")
            except OSError:
                continue
            if output.startswith(f"{self.folder}/"):
                found.append(int(process.name))
        return sorted(found)

    def are_beginning(self) -> bool:
        """Whether one of them may yet become, or not become, a member's program."""
        return any(str(LIFELINE).encode() in _read(pid, "cmdline") for pid in self.running())

    def said(self, id: str) -> list[str]:
        log = self.folder / f"{id}.log"
        return log.read_text().split() if log.exists() else []

    def clear(self) -> None:
        for other in self._others:
            other.kill()
            other.communicate()
        while pids := self.running():
            for pid in pids:
                _kill(pid)
        for crew in self._crews:
            for process in crew._children:
                process.wait()


@pytest.fixture
def ship(tmp_path: Path) -> Iterator[Ship]:
    found = Ship(tmp_path / "crew")
    try:
        yield found
    finally:
        found.clear()


def wait_until(question: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def started(ship: Ship, crew: Crew, id: str, argv: Sequence[str] = STEADY) -> int:
    """Start it and wait until its program has said hello; its process."""
    before = ship.said(id).count("hello")
    crew.start(id, argv, ENVIRON, b"note")
    wait_until(lambda: ship.said(id).count("hello") > before, f"{id} to say hello")
    (pid,) = [one.pid for one in crew.members() if one.id == id]
    assert pid is not None
    return pid


def kill(ship: Ship, pid: int) -> None:
    _kill(pid)
    wait_until(lambda: pid not in ship.running(), f"{pid} to die")


def ended(crew: Crew, id: str, patience_s: float = NEVER_S) -> None:
    wait_until(lambda: crew.end(id, patience_s), f"{id} to end")


def states(crew: Crew) -> dict[str, MemberState]:
    return {one.id: one.state for one in crew.members()}


# -- starting


def test_a_member_runs_under_its_id_with_what_was_written_about_it(ship: Ship) -> None:
    crew = ship.crew()
    assert crew.members() == []

    pid = started(ship, crew, "b")
    crew.start("a", STEADY, ENVIRON, b"\x00 any bytes \xff")
    wait_until(lambda: ship.said("a") == ["hello"], "the second to say hello")

    (other,) = set(ship.running()) - {pid}
    assert crew.members() == [
        Member("a", MemberState.RUNNING, b"\x00 any bytes \xff", other),
        Member("b", MemberState.RUNNING, b"note", pid),
    ]


def test_a_member_that_is_started_twice_is_one_process(ship: Ship) -> None:
    crew = ship.crew()
    crew.start("m", STEADY, ENVIRON, b"note")
    crew.start("m", STEADY, ENVIRON, b"note")
    wait_until(lambda: ship.said("m") and not ship.are_beginning(), "it to run")
    (pid,) = ship.running()

    crew.start("m", STEADY, ENVIRON, b"something else")
    ship.crew().start("m", STEADY, ENVIRON, b"something else")

    assert not ship.are_beginning()
    assert ship.running() == [pid]
    assert ship.said("m") == ["hello"]
    assert crew.members() == [Member("m", MemberState.RUNNING, b"note", pid)]


def test_two_that_start_the_same_members_at_the_same_moment_start_each_once(ship: Ship) -> None:
    ids = [f"m{number}" for number in range(10)]
    starters = [ship.another(START, *ids) for _ in range(2)]
    for one in starters:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in starters:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()

    assert [one.communicate(timeout=PATIENCE_S)[0] for one in starters] == ["", ""]
    wait_until(lambda: all(ship.said(id) for id in ids) and not ship.are_beginning(), "all to run")

    assert [ship.said(id) for id in ids] == [["hello"]] * len(ids)
    assert len(ship.running()) == len(ids)
    assert sorted(one.pid or 0 for one in ship.crew().members()) == ship.running()


def test_one_that_has_ended_is_not_started_again_until_nothing_is_left_of_it(ship: Ship) -> None:
    crew = ship.crew()
    pid = started(ship, crew, "m")
    kill(ship, pid)

    for one in (crew, ship.crew()):
        assert one.members() == [Member("m", MemberState.ENDED, b"note", pid)]
        one.start("m", STEADY, ENVIRON, b"again")
        assert not ship.running()
        assert one.members() == [Member("m", MemberState.ENDED, b"note", pid)]

    assert crew.end("m", NEVER_S)
    assert crew.members() == []
    again = started(ship, crew, "m")
    assert ship.running() == [again]


def test_one_that_ends_by_itself_has_ended(ship: Ship) -> None:
    crew = ship.crew()
    crew.start("m", BRIEF, ENVIRON, b"note")
    wait_until(lambda: states(crew) == {"m": MemberState.ENDED}, "it to end")
    assert ship.said("m") == ["hello"]


def test_a_program_that_is_not_there_has_ended_and_its_log_says_why(ship: Ship) -> None:
    crew = ship.crew()
    crew.start("m", ("/nowhere/program",), ENVIRON, b"note")
    wait_until(lambda: states(crew) == {"m": MemberState.ENDED}, "it to end")
    assert "FileNotFoundError" in crew.log_path("m").read_text()


def test_a_member_gets_its_command_and_environment_and_nothing_else_of_ours(
    ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_OURS", "1")
    (ship.folder.parent / "inherited").touch()
    ours = os.open(ship.folder.parent / "inherited", os.O_RDONLY)
    os.set_inheritable(ours, True)
    argv = [*PYTHON, STUBBORN, "", "two words", "--", "$HOME *", "zwölf"]
    environ = {"LC_ALL": "C.UTF-8", "EMPTY": "", "TEXT": "a=b\n'ü", "INFAAS_STATE_DIR": "/x"}
    crew = ship.crew()
    try:
        crew.start("m", argv, environ, b"note")
        wait_until(lambda: ship.said("m") == ["hello"], "it to say hello")
    finally:
        os.close(ours)

    (pid,) = ship.running()
    assert _words(pid, "cmdline") == argv
    assert dict(word.split("=", 1) for word in _words(pid, "environ")) == environ
    log, own = str(crew.log_path("m")), str(ship.folder / "m")
    files = sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    assert files == sorted(["/dev/null", log, log, f"{own}/life"])


def test_a_member_gets_nothing_besides_its_environment_where_that_names_no_locale(ship: Ship) -> None:
    ship.crew().start("m", STEADY, {"ONLY": "this"}, b"note")
    wait_until(lambda: ship.said("m") == ["hello"] and not ship.are_beginning(), "it to run")
    (pid,) = ship.running()
    assert [word for word in _words(pid, "environ") if not word.startswith("PWD=")] == ["ONLY=this"], (
        "PWD is the shell's"
    )


def test_a_member_outlives_whoever_started_it_and_its_terminal(ship: Ship) -> None:
    starter = ship.another(START, "m")
    starter.communicate("\n", timeout=PATIENCE_S)
    assert starter.returncode == 0
    wait_until(lambda: ship.said("m") == ["hello"], "it to run")

    (pid,) = ship.running()

    assert ship.crew().members() == [Member("m", MemberState.RUNNING, b"by another", pid)]
    assert os.getsid(pid) == pid
    assert os.getsid(pid) != os.getsid(0)


# -- beginning


@pytest.fixture
def orphaned(ship: Ship) -> bytes:
    """A member that is a folder with a note only: whoever wanted to start it died before. What is said of it."""
    (ship.folder / "m").mkdir(parents=True)
    (ship.folder / "m" / "note.json").write_bytes(b"of the dead")
    return b"of the dead"


def test_a_member_whose_starter_died_first_is_beginning_and_can_be_started(ship: Ship, orphaned: bytes) -> None:
    crew = ship.crew()
    assert crew.members() == [Member("m", MemberState.BEGINNING, orphaned)]
    pid = started(ship, crew, "m")
    assert crew.members() == [Member("m", MemberState.RUNNING, orphaned, pid)]


def test_a_member_whose_starter_died_first_can_be_ended(ship: Ship, orphaned: bytes) -> None:
    crew = ship.crew()
    assert crew.end("m", NEVER_S)
    assert crew.members() == []
    assert list(ship.folder.iterdir()) == []


def test_one_that_was_ended_as_it_began_does_not_run(ship: Ship) -> None:
    crew = ship.crew()
    for _ in range(10):
        crew.start("m", STEADY, ENVIRON, b"note")
        ended(crew, "m")
        assert ship.running() == []
        assert crew.members() == []


def test_one_that_another_process_is_just_beginning_is_not_taken_for_gone(ship: Ship) -> None:
    """A lifeline holds the lock for a moment before it has said who it is."""
    (ship.folder / "m").mkdir(parents=True)
    (ship.folder / "m" / "note.json").touch()
    with (ship.folder / "m" / "life").open("w") as life:
        fcntl.flock(life, fcntl.LOCK_EX)
        assert not ship.crew().end("m", NEVER_S)
    ended(ship.crew(), "m")


def test_nothing_begins_in_a_folder_that_was_taken_away(tmp_path: Path) -> None:
    lifeline = [sys.executable, "-I", "-S", str(LIFELINE)]
    begun = subprocess.run(
        [*lifeline, str(tmp_path / "gone"), "--", "/bin/echo", "hello"], capture_output=True, text=True
    )
    assert begun.returncode != 0
    assert begun.stdout == ""


def test_the_lifeline_begins_once_and_tells_who_it_is(tmp_path: Path) -> None:
    lifeline = [sys.executable, "-I", "-S", str(LIFELINE), str(tmp_path), "--", *BRIEF]
    said = [subprocess.run(lifeline, capture_output=True, text=True) for _ in range(2)]
    assert [(one.returncode, one.stdout, one.stderr) for one in said] == [(0, "hello\n", ""), (0, "", "")]
    usage = subprocess.run(lifeline[:-4], capture_output=True, text=True)
    assert (usage.returncode, usage.stdout) == (1, "")
    assert "usage" in usage.stderr


# -- ending


def test_a_member_is_asked_first_and_may_finish_what_it_has(ship: Ship) -> None:
    crew, may_end = ship.crew(), ship.folder.parent / "may-end"
    pid = started(ship, crew, "m", (*PYTHON, PATIENT, str(may_end)))

    assert not crew.end("m", NEVER_S)
    wait_until(lambda: ship.said("m") == ["hello", "asked"], "it to be asked")
    assert not crew.end("m", NEVER_S)
    assert crew.members() == [Member("m", MemberState.RUNNING, b"note", pid)]
    may_end.touch()
    ended(crew, "m")

    assert ship.said("m") == ["hello", "asked", "finished"]
    assert crew.members() == []
    assert not (ship.folder / "m").exists()
    assert ship.running() == []


def test_one_that_does_not_end_is_killed_once_its_time_is_over_and_not_before(ship: Ship) -> None:
    crew = ship.crew()
    pid = started(ship, crew, "m", (*PYTHON, STUBBORN))
    first_asked = time.time()
    for _ in range(5):
        assert not crew.end("m", NEVER_S)
    assert ship.running() == [pid]

    patience_s = time.time() - first_asked + 0.3
    ended(crew, "m", patience_s)

    assert time.time() - first_asked >= patience_s
    assert ship.running() == []
    assert crew.members() == []


def test_time_counts_from_the_first_request_whoever_made_it(ship: Ship) -> None:
    started(ship, ship.crew(), "m", (*PYTHON, STUBBORN))
    assert not ship.crew().end("m", 0.0), "even without patience it is asked first"
    assert len(ship.running()) == 1

    assert not ship.crew().end("m", 0.0)

    wait_until(lambda: not ship.running(), "it to be killed")
    assert ship.crew().end("m", 0.0)


def test_to_end_nobody_is_to_have_ended_it(ship: Ship) -> None:
    crew = ship.crew()
    assert crew.end("nobody", NEVER_S)
    started(ship, crew, "m")
    assert crew.end("nobody", NEVER_S)
    ended(crew, "m")
    assert crew.end("m", NEVER_S)


def test_the_end_of_one_leaves_the_others_alone(ship: Ship) -> None:
    crew = ship.crew()
    pids = [started(ship, crew, id) for id in ("a", "b", "c")]
    ended(crew, "b")
    assert ship.running() == sorted([pids[0], pids[2]])
    assert states(crew) == {"a": MemberState.RUNNING, "c": MemberState.RUNNING}


def test_all_are_ended_whatever_they_do(ship: Ship) -> None:
    crew = ship.crew()
    started(ship, crew, "steady")
    started(ship, crew, "stubborn", (*PYTHON, STUBBORN))
    kill(ship, started(ship, crew, "dead"))
    crew.start("beginning", STEADY, ENVIRON, b"note")

    crew.end_all(0.2)

    assert crew.members() == []
    assert ship.running() == []
    assert [path.name for path in ship.folder.iterdir() if path.is_dir()] == []
    crew.end_all(0.2)


def test_a_crew_that_never_was_has_ended(ship: Ship) -> None:
    ship.crew().end_all(NEVER_S)
    assert not ship.folder.exists()


def test_another_process_sees_and_ends_what_the_first_started(ship: Ship) -> None:
    crew = ship.crew()
    started(ship, crew, "a")
    kill(ship, started(ship, crew, "b"))

    said, _ = ship.another(END).communicate(timeout=PATIENCE_S)

    assert said == "[('a', 'running'), ('b', 'ended')]\n"
    assert ship.running() == []
    assert crew.members() == []


def test_a_dead_child_that_nobody_has_reaped_is_not_taken_for_running(ship: Ship) -> None:
    owner, other = ship.crew(), ship.crew()
    pid = started(ship, owner, "m")
    kill(ship, pid)

    assert other.members() == [Member("m", MemberState.ENDED, b"note", pid)]
    assert "State:\tZ" in _read(pid, "status").decode()
    assert owner.members() == [Member("m", MemberState.ENDED, b"note", pid)]
    assert not Path(f"/proc/{pid}").exists(), "whoever started it reaps it when it looks"


def test_a_dead_child_that_nobody_has_reaped_is_no_obstacle_to_its_end(ship: Ship) -> None:
    owner, other = ship.crew(), ship.crew()
    pid = started(ship, owner, "m")
    kill(ship, pid)

    assert other.end("m", NEVER_S)

    assert "State:\tZ" in _read(pid, "status").decode()
    assert owner.members() == []
    assert owner.end("m", NEVER_S)


def test_a_stranger_who_has_the_number_of_a_dead_member_is_left_alone(ship: Ship) -> None:
    crew = ship.crew()
    stranger = started(ship, crew, "stranger")
    kill(ship, started(ship, crew, "m"))
    life = ship.folder / "m" / "life"
    life.write_text(f"{stranger} {life.read_text().split()[1]}0\n")

    assert states(crew) == {"m": MemberState.ENDED, "stranger": MemberState.RUNNING}
    assert crew.end("m", 0.0)
    assert ship.running() == [stranger]


def test_folders_that_are_not_members_are_left_alone(ship: Ship) -> None:
    crew = ship.crew()
    started(ship, crew, "m")
    (ship.folder / "photos").mkdir()
    (ship.folder / "photos" / "1.jpg").touch()

    crew.end_all(NEVER_S)

    assert (ship.folder / "photos" / "1.jpg").exists()


# -- logs


def test_what_a_member_said_stays_when_it_is_gone(ship: Ship) -> None:
    crew = ship.crew()
    started(ship, crew, "m")
    assert crew.log_path("m").read_text() == "hello\n"
    ended(crew, "m")
    assert crew.log_path("m").read_text() == "hello\n"
    started(ship, crew, "m")
    assert crew.log_path("m").read_text() == "hello\nhello\n"


def test_only_the_last_logs_of_the_gone_are_kept_and_all_of_those_that_are_there(ship: Ship) -> None:
    crew = ship.crew()
    started(ship, crew, "there")
    gone = [f"m{number:02}" for number in range(LOGS_KEPT + 3)]
    for id in gone:
        crew.start(id, BRIEF, ENVIRON, b"note")
        wait_until(lambda: MemberState.ENDED in states(crew).values(), "it to end")
        assert crew.end(id, NEVER_S)

    kept = sorted(path.stem for path in ship.folder.glob("*.log"))

    assert kept == [*gone[-LOGS_KEPT:], "there"]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _words(pid: int, name: str) -> list[str]:
    return [word.decode() for word in _read(pid, name).split(b"\0")[:-1]]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
