"""Programs on this machine that outlive whoever started them: each has a folder, is started once, and is asked to end.

Everything is in the folders, so any process of this machine and user can say what runs and end it: the controller that
leads today, the one that leads after it, and `infaas up` when it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infaas.up.lifeline import GROUP, LIFE
from infaas.up.quota import forget, limit_cpu
from infaas.up.record import is_alive
from infaas.up.tether import GUARDIAN_PID

NOTE = "note.json"
TOLD = "told"
GUARDIAN = "guardian"
LOGS_KEPT = 20
TELL_AGAIN_S = 5.0
_LIFELINE = Path(__file__).with_name("lifeline.py")
_NEVER_LIVED = b"0 0\n"


class MemberState(StrEnum):
    BEGINNING = "beginning"
    """It was started, and has not said so yet; or whoever wanted to start it died before."""
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Member:
    id: str
    state: MemberState
    note: bytes
    """What whoever started it wrote about it."""
    pid: int | None = None
    guardian: int | None = None
    """The process that it ends with; None: with nobody."""


class Crew:
    """Blocking, and safe to use from several threads and processes at once. All of it raises OSError for a folder that
    cannot be used. Of what else is in the folder nothing is touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._children: list[subprocess.Popen[bytes]] = []
        """Our own, to be reaped."""
        self._beginning: dict[str, subprocess.Popen[bytes]] = {}
        """The last of them for each member."""
        self._lock = threading.Lock()

    def start(
        self, id: str, argv: Sequence[str], environ: Mapping[str, str], note: bytes, cpu_limit: float | None = None
    ) -> None:
        """Started already, or once ended, it is left as it is. `argv[0]` is an absolute path; `environ` is all that the
        program gets; `cpu_limit` as many cores' worth of time. Raises QuotaError when it cannot be limited."""
        with self._lock:
            self._reap()
            group = None if cpu_limit is None else limit_cpu(f"infaas-{id}", cpu_limit)
            own = self._prepared(id, note, environ.get(GUARDIAN_PID, ""), group)
            child = self._beginning.get(id)
            if _identity(own) is not None or (child is not None and child.returncode is None):
                return
            command = [sys.executable, "-I", "-S", str(_LIFELINE), str(own), "--", *argv]
            with self.log_path(id).open("ab") as log:
                child = subprocess.Popen(
                    command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            self._children.append(child)
            self._beginning[id] = child

    def members(self) -> list[Member]:
        """By id."""
        with self._lock:
            self._reap()
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        found = [_member(self._folder / name) for name in names]
        return [one for one in found if one is not None]

    def end(self, id: str, patience_s: float) -> bool:
        """Ask it to end, or, when it was asked so long ago, make it; True: nothing is left of it. To be called again
        until then."""
        own = self._folder / id
        with self._lock:
            self._reap()
            if self._folder.exists() and not self._folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self._folder))
            if _member(own) is None:
                return True
            identity = _identity(own)
            if identity is None and not _kept_from_beginning(own):
                return False
            if identity is not None and is_alive(*identity):
                _tell(own, identity[0], patience_s)
                return False
            child = self._beginning.pop(id, None)
            if child is not None and child.poll() is None:  # it has not come to anything, and will not
                child.kill()
                child.wait()
            self._take_away(own)
            return not own.exists()

    def end_all(
        self,
        patience_s: float,
        is_meant: Callable[[Member], bool] = lambda _: True,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Of those that are meant, whoever is left when every patience is over."""
        deadline = time.monotonic() + patience_s + TELL_AGAIN_S
        while left := [one.id for one in self.members() if is_meant(one)]:
            for id in left:
                self.end(id, 0.0 if is_hurried() else patience_s)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    def log_path(self, id: str) -> Path:
        """Stays when the program is gone; of the last so many."""
        return self._folder / f"{id}.log"

    def _prepared(self, id: str, note: bytes, guardian: str, group: Path | None) -> Path:
        """Whole from the first moment on."""
        own = self._folder / id
        if own.is_dir():
            return own
        beside = self._folder / f".{id}.{secrets.token_hex(4)}"
        beside.mkdir(mode=0o700, parents=True)
        (beside / NOTE).write_bytes(note)
        (beside / GUARDIAN).write_text(guardian)
        if group is not None:
            (beside / GROUP).write_text(str(group))
        try:
            beside.rename(own)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if not own.is_dir():
                raise
        return own

    def _take_away(self, own: Path) -> None:
        """At once for all who look."""
        with contextlib.suppress(FileNotFoundError):
            forget(Path((own / GROUP).read_text()))
        gone = self._folder / f".{own.name}.{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):  # another was faster
            own.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        logs = [path for path in self._folder.glob("*.log") if not (self._folder / path.stem).is_dir()]
        logs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in logs[LOGS_KEPT:]:
            path.unlink(missing_ok=True)

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]


def _tell(own: Path, pid: int, patience_s: float) -> None:
    """To end; now and then again, for a signal may come before anybody listens; by force in the end."""
    asked = own / TOLD
    now = time.clock_gettime(time.CLOCK_BOOTTIME)  # what it was told stays true when somebody sets the clock
    first, last = _told_at(asked)
    with contextlib.suppress(ProcessLookupError):
        if first is not None and now - first >= patience_s:
            os.killpg(pid, signal.SIGKILL)
        elif last is None or now - last >= TELL_AGAIN_S:
            os.kill(pid, signal.SIGTERM)
            asked.write_text(f"{now if first is None else first} {now}")


def _told_at(path: Path) -> tuple[float | None, float | None]:
    try:
        first, last = path.read_text().split()
        return float(first), float(last)
    except (FileNotFoundError, ValueError):
        return None, None


def _kept_from_beginning(own: Path) -> bool:
    """False: it is just beginning."""
    descriptor = os.open(own / LIFE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_size:
            return False
        os.write(descriptor, _NEVER_LIVED)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _member(own: Path) -> Member | None:
    """None: it is none of ours, or it is being taken away."""
    if own.name.startswith(".") or own.is_symlink() or not own.is_dir():
        return None
    try:
        note = (own / NOTE).read_bytes()
    except OSError:
        return None
    identity = _identity(own)
    guardian = _guardian(own)
    if identity is None:
        return Member(own.name, MemberState.BEGINNING, note, guardian=guardian)
    state = MemberState.RUNNING if is_alive(*identity) else MemberState.ENDED
    return Member(own.name, state, note, identity[0], guardian)


def _guardian(own: Path) -> int | None:
    try:
        return int((own / GUARDIAN).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _identity(own: Path) -> tuple[int, int] | None:
    """Process and start time; None: it has not begun."""
    try:
        words = (own / LIFE).read_text().split()
    except FileNotFoundError:
        return None
    return (int(words[0]), int(words[1])) if len(words) == 2 else None
