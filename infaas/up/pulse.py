"""A sign of life of a program that nobody can call: a file in the state folder, which its event loop writes anew.

A program that hangs stops writing; one that was killed leaves a file with a process id that is nobody's. Times are of
the monotonic clock, which all processes of a machine share, so that a clock that jumps kills nobody.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from infaas.errors import SettingsError, UnavailableError
from infaas.up.record import run_dir, start_ticks

EVERY_S = 2.0
LOST_AFTER_S = 15.0


@dataclass(frozen=True, slots=True)
class Pulse:
    pid: int
    age_s: float


class Heart:
    """Writes this process's sign of life, and takes it away at the end."""

    def __init__(self, state_dir: Path, program: str) -> None:
        """Raises SettingsError when the folder cannot be made."""
        self._path = _file(state_dir, program)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"state_dir {str(state_dir)!r} cannot be written: {error.strerror}") from error

    async def beat(self) -> None:
        """One write of some bytes; raises OSError where the folder takes none."""
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        scratch.write_text(json.dumps({"pid": os.getpid(), "at": time.monotonic()}))
        os.replace(scratch, self._path)

    def stop(self) -> None:
        self._path.unlink(missing_ok=True)


def read(state_dir: Path, program: str) -> Pulse | None:
    """None when no such program lives in this folder. Raises UnavailableError when the file is not ours."""
    path = _file(state_dir, program)
    try:
        found = json.loads(path.read_text())
        pid, at = int(found["pid"]), float(found["at"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"{path} is no sign of life: {type(error).__name__}: {error}") from error
    return None if start_ticks(pid) is None else Pulse(pid, time.monotonic() - at)


def _file(state_dir: Path, program: str) -> Path:
    return run_dir(state_dir) / f"{program}.pulse.json"
