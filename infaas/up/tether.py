"""Ties a child process to its supervisor: when the supervisor dies, however it dies, the child gets a signal.

Run as a script it ties itself and then becomes another program (`tether.py PARENT_PID -- COMMAND...`), for programs
that are not ours, such as the Redis server. It imports the standard library only, so that this costs milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
SUPERVISOR_PID = "INFAAS_SUPERVISOR_PID"
"""The variable that tells a program whom it must not outlive: its parent."""
GUARDIAN_PID = "INFAAS_GUARDIAN_PID"
"""The same, where that is not its parent, and may not be told the program to end."""
_LOOK_EVERY_S = 1.0


def die_with(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel for `signal_number` when the parent dies.

    Raises SystemExit when the parent is already gone (the kernel only tells of deaths after this call), and OSError
    when the kernel refuses. The setting survives `exec`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise SystemExit(f"the supervisor (pid {parent_pid}) is gone; not starting without it")


def end_with(guardian_pid: int) -> None:
    """Have this process asked to end (SIGTERM) within a second of the guardian's death, however that comes about. The
    kernel tells of parents only.

    Raises SystemExit when it is gone already.
    """
    ticks = _ticks_of(guardian_pid)
    if ticks is None:
        raise SystemExit(f"the guardian (pid {guardian_pid}) is gone; not starting without it")

    def watch() -> None:
        while _ticks_of(guardian_pid) == ticks:
            time.sleep(_LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="guardian", daemon=True).start()


def _ticks_of(pid: int) -> str | None:
    """When it started, which tells it from a later one of that number; None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else fields[19]


def main(argv: list[str]) -> None:
    if len(argv) < 3 or argv[1] != "--" or not argv[0].isdigit():
        raise SystemExit("usage: tether.py PARENT_PID -- COMMAND [ARGUMENT...]")
    die_with(int(argv[0]))
    os.execv(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
