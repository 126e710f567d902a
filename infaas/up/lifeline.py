"""`lifeline.py FOLDER -- COMMAND` becomes that program, once in the life of a folder, and leaves there who it is.

The file `life` in the folder is locked for as long as the program runs and names its process. Who starts the same
folder again, at the same moment or later, starts nothing: a machine that was ordered twice is one, and one that has
ended does not come back. It imports the standard library only, so that this costs milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

LIFE = "life"
GROUP = "group"
"""Names the file of a control group that the program is to be in; none: in that of whoever starts it."""


def begin(folder: str, command: list[str]) -> None:
    """Does not return, unless the folder has had its life or has it now. Raises FileNotFoundError when it is gone."""
    path = os.path.join(folder, LIFE)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if os.stat(path).st_ino != os.fstat(descriptor).st_ino or os.fstat(descriptor).st_size:
        return
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        text = file.read()
    ticks = text[text.rindex(")") + 2 :].split()[19]
    _join(os.path.join(folder, GROUP))
    os.write(descriptor, f"{os.getpid()} {ticks}\n".encode())
    os.set_inheritable(descriptor, True)
    # What this interpreter changed for itself is not for the program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    with open("/proc/self/environ", "rb") as given:
        words = [word.partition(b"=") for word in given.read().split(b"\0") if b"=" in word]
    os.execve(command[0], command, {name: value for name, _, value in words})


def _join(name: str) -> None:
    """Before it is anybody: one that cannot be limited does not run."""
    if os.path.exists(name):
        with open(name, encoding="utf-8") as file:
            path = file.read()
        with open(path, "w", encoding="ascii") as group:
            group.write(str(os.getpid()))


def main(argv: list[str]) -> None:
    if len(argv) < 3 or argv[1] != "--":
        raise SystemExit("usage: lifeline.py FOLDER -- COMMAND [ARGUMENT...]")
    begin(argv[0], argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
