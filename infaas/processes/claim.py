"""What only one of several processes may have, as long as it lives."""

from __future__ import annotations

import fcntl


class Claim:
    """To answer for all processes while none is ready.

    The lock is the kernel's (POSIX), so a process that dies lets go of it, as does one that closes any descriptor of
    the file, a copy too: nobody does, these are open as long as the process is.
    """

    def __init__(self, descriptor: int | None) -> None:
        """`descriptor`: of a file that all processes have, to be written; None: this process is alone."""
        self._descriptor = descriptor

    def take(self) -> bool:
        """Whether this process has it now; who has it keeps it."""
        if self._descriptor is None:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX leaves it open which
            return False
        return True
