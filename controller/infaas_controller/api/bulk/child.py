"""One bulk process as the controller has it: started, spoken to with patience, ended."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import time
from io import FileIO

from infaas.errors import UnavailableError
from infaas.observe.log import get_logger

_PIPE_BYTES = 1 << 20
_ENDS_WITHIN_S = 2.0
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_log = get_logger(__name__)


class Child:
    """One child. It ends with its input, so it does not outlive this process, however that ends."""

    def __init__(self) -> None:
        """Raises UnavailableError."""
        # No setting goes along: what reads strangers' requests has no use for a token.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("INFAAS_")} | _THREADS
        theirs, ours = -1, -1
        try:
            ours, theirs = os.pipe()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "infaas_controller.api.bulk.process", str(theirs)],
                stdin=subprocess.PIPE,
                stdout=2,  # what a library prints is for the log, not between the replies
                pass_fds=(theirs,),
                bufsize=0,
                env=environment,
            )
        except OSError as error:
            if ours >= 0:
                os.close(ours)
            raise UnavailableError(f"large requests cannot be read: no process can be started ({error})") from error
        finally:
            if theirs >= 0:
                os.close(theirs)
        self.replies = FileIO(ours)
        jobs = self._child.stdin
        if not isinstance(jobs, FileIO):
            raise TypeError("a pipe without a buffer is a file")
        self.jobs = jobs
        for pipe in (jobs, self.replies):
            os.set_blocking(pipe.fileno(), False)  # this end of it
            _widen(pipe)
        self.pid = self._child.pid

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        self._child.kill()

    def end(self) -> int | None:
        """Any number of times. Its exit status; None when the system does not let it go yet."""
        self._child.kill()
        self.jobs.close()
        self.replies.close()
        try:
            return self._child.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            _log.warning("a bulk process was killed and is still there", pid=self.pid)
            return None


class Patience:
    """How long a thread waits for a pipe, over all its waits together."""

    def __init__(self, limit_s: float) -> None:
        self._until = time.monotonic() + limit_s

    def until_writable(self, pipe: FileIO) -> None:
        self._wait(pipe, select.POLLOUT)

    def until_readable(self, pipe: FileIO) -> None:
        self._wait(pipe, select.POLLIN)

    def _wait(self, pipe: FileIO, event: int) -> None:
        """Raises TimeoutError. A pipe whose other side is gone counts as ready: using it says so."""
        poller = select.poll()
        poller.register(pipe, event)
        if not poller.poll(max(0.0, self._until - time.monotonic()) * 1e3):
            raise TimeoutError("the other side is stuck")


def _widen(pipe: FileIO) -> None:
    """Fewer turns per request; where the system's share of pipe memory is used up, its default does as well."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except PermissionError as error:
        _log.debug("a pipe stays as it is", reason=str(error))
