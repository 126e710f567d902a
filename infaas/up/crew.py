"""Programs on this machine that outlive whoever started them: each has a folder, is started once, and is asked to end.

Everything is in the folders, so any process of this machine and user can say what runs and end it: the controller that
leads today, the one that leads after it, and `infaas up` when it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infaas.up.lifeline import LIFE
from infaas.up.record import is_alive

NOTE = "note.json"
TOLD = "told"
LOGS_KEPT = 20
_LIFELINE = Path(__file__).with_name("lifeline.py")


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


class Crew:
    """Blocking, and safe to use from several processes at once. All of it raises OSError for a folder that cannot be
    used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        """Our own children, to be reaped."""

    def start(self, id: str, argv: Sequence[str], environ: Mapping[str, str], note: bytes) -> None:
        """Started already, or once ended, it is left as it is. `argv[0]` is an absolute path; `environ` is all that the
        program gets."""
        own = self._folder / id
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _pid_of(own) is not None:
            return
        beside = own / f"{NOTE}.{os.getpid()}"
        beside.write_bytes(note)
        beside.replace(own / NOTE)
        command = [sys.executable, "-I", "-S", str(_LIFELINE), str(own), "--", *argv]
        with self.log_path(id).open("ab") as log:
            self._started[id] = subprocess.Popen(
                command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def members(self) -> list[Member]:
        """By id."""
        for process in self._started.values():
            process.poll()
        if not self._folder.is_dir():
            return []
        found = []
        for own in sorted(self._folder.iterdir()):
            if own.is_dir():
                with contextlib.suppress(FileNotFoundError):  # it is being taken away
                    found.append(_member(own))
        return found

    def end(self, id: str, patience_s: float) -> bool:
        """Ask it to end, or, when it was asked so long ago, make it; True: nothing is left of it. To be called again
        until then."""
        own = self._folder / id
        if not own.is_dir():
            return True
        identity = _pid_of(own)
        if identity is not None and is_alive(*identity):
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity[0], self._which(own, patience_s))
            return False
        process = self._started.get(id)
        if process is not None:
            if process.poll() is None:  # it has not come to say who it is
                process.kill()
                process.wait()
            del self._started[id]
        shutil.rmtree(own, ignore_errors=True)
        self._prune_logs()
        return not own.exists()

    def end_all(self, patience_s: float) -> None:
        """Returns once none is left."""
        while members := self.members():
            for one in members:
                self.end(one.id, patience_s)
            time.sleep(0.05)

    def log_path(self, id: str) -> Path:
        """Stays when the program is gone; of the last so many."""
        return self._folder / f"{id}.log"

    def _which(self, own: Path, patience_s: float) -> signal.Signals:
        told = own / TOLD
        if not told.exists():
            told.touch(mode=0o600)
            return signal.SIGTERM
        is_over = time.time() - told.stat().st_mtime >= patience_s
        return signal.SIGKILL if is_over else signal.SIGTERM

    def _prune_logs(self) -> None:
        logs = sorted(self._folder.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in logs[LOGS_KEPT:]:
            if not (self._folder / path.stem).is_dir():
                path.unlink(missing_ok=True)


def _member(own: Path) -> Member:
    note = own / NOTE
    said = note.read_bytes() if note.exists() else b""
    identity = _pid_of(own)
    if identity is None:
        return Member(own.name, MemberState.BEGINNING, said)
    state = MemberState.RUNNING if is_alive(*identity) else MemberState.ENDED
    return Member(own.name, state, said, identity[0])


def _pid_of(own: Path) -> tuple[int, int] | None:
    """Process and start time; None: it has not begun."""
    try:
        words = (own / LIFE).read_text().split()
    except FileNotFoundError:
        return None
    return (int(words[0]), int(words[1])) if len(words) == 2 else None
