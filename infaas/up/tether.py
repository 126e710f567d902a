"""Ties a child process to its supervisor: when the supervisor dies, however it dies, the child gets a signal.

Run as a script it ties itself and then becomes another program (`tether.py PARENT_PID -- COMMAND...`), for programs
that are not ours, such as the Redis server. It imports the standard library only, so that this costs milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
SUPERVISOR_PID = "INFAAS_SUPERVISOR_PID"
"""The variable that tells a program whom it must not outlive."""


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


def main(argv: list[str]) -> None:
    if len(argv) < 3 or argv[1] != "--" or not argv[0].isdigit():
        raise SystemExit("usage: tether.py PARENT_PID -- COMMAND [ARGUMENT...]")
    die_with(int(argv[0]))
    os.execv(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
