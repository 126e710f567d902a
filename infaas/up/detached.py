"""`infaas up --detach`, and `infaas down`: a system in the background is started and stopped from elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from infaas.errors import NotFoundError, UnavailableError
from infaas.up import preflight
from infaas.up.console import tail
from infaas.up.record import UpRecord, is_alive, is_up, read_up

LOOK_EVERY_S = 0.05
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 90.0


def supervisor_argv(*, is_verbose: bool = False) -> list[str]:
    return [sys.executable, "-m", "infaas.up", *(["--verbose"] if is_verbose else [])]


def start_detached(state_dir: Path, environ: Mapping[str, str], *, timeout_s: float = READY_WITHIN_S) -> UpRecord:
    """Start a supervisor in a session of its own and wait until its system is ready.

    Raises UnavailableError with what it said when it ends before that, or when a program is in a crash loop or the
    system is not ready in time (it goes on trying then).
    """
    preflight.prepare_folder(state_dir)
    log = preflight.log_path(state_dir, "up")
    # A refused second start must not take the log away from the one that runs.
    if not is_up(read_up(state_dir)):
        preflight.rotate_logs(state_dir, ["up"])
    with log.open("ab") as out:
        begin = out.tell()
        process = subprocess.Popen(
            supervisor_argv(),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = process.poll()
        if status is not None:
            raise UnavailableError(_said(log, begin) or f"the supervisor ended with {status}; see {log}")
        record = read_up(state_dir)
        if record is not None and record.pid == process.pid:
            if record.state == "ready":
                return record
            _raise_if_looping(record)
        time.sleep(LOOK_EVERY_S)
    raise UnavailableError(f"not ready after {timeout_s:.0f} s; it goes on in the background:\n{tail(str(log))}")


def stop(state_dir: Path, *, timeout_s: float = STOP_WITHIN_S, is_forced: bool = False) -> UpRecord:
    """Ask the supervisor of a folder to stop and wait for it; returns what it was.

    Raises NotFoundError when nothing runs there, UnavailableError when it is still there after `timeout_s`.
    """
    record = read_up(state_dir)
    if record is None or not is_up(record):
        raise NotFoundError(f"nothing is up in {state_dir}")
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while is_alive(record.pid, record.start_ticks):
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"the supervisor (pid {record.pid}) is still stopping after {timeout_s:.0f} s; "
                "`infaas down --force` does not wait for queries"
            )
        time.sleep(LOOK_EVERY_S)
        current = read_up(state_dir)
        # The second signal means "at once"; sent before the first was taken, the two would count as one.
        if is_forced and current is not None and current.state == "stopping" and is_up(record):
            os.kill(record.pid, signal.SIGTERM)
    return record


def _raise_if_looping(record: UpRecord) -> None:
    for program in record.programs:
        if program.state == "crash-loop":
            raise UnavailableError(
                f"{program.name} does not stay up ({program.last_exit}); its log ends with\n{tail(program.log)}\n"
                "It is tried again in the background; `infaas down` ends that."
            )


def _said(log: Path, begin: int) -> str:
    """The last line of what a supervisor printed; its error, when it gave up at once."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""
