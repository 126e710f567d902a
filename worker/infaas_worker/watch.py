"""Looks after runs that the loop performs itself: while one of them hangs, nothing else in the process can notice.

A thread looks now and then what is running, and for how long. A run that takes as long as no run may is the end of the
process: why is left in the black box for its next life, which blames the instance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from infaas_worker.decide.hang import paused_s

_LOOK_EVERY_S = 0.5


class Watch:
    """Started and stopped by the composition root; told by the loop what begins and ends."""

    def __init__(self, given_s: float, on_hung: Callable[[str], None]) -> None:
        """`on_hung` is called on the watching thread, with the reason, once a run has taken longer than `given_s`."""
        self._given_s = given_s
        self._on_hung = on_hung
        self._running: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="run-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def began(self, what: str) -> None:
        """`what`: the instance, in the words that a reason begins with."""
        self._running = (what, time.monotonic())

    def ended(self) -> None:
        self._running = None

    def _look(self) -> None:
        """Nothing is blamed for the time in which the whole process was stopped."""
        seen: tuple[str, float] | None = None
        excused_s = 0.0
        last = time.monotonic()
        while not self._stop.wait(_LOOK_EVERY_S):
            now, running = time.monotonic(), self._running
            excused_s = paused_s(last, now, _LOOK_EVERY_S) + (excused_s if running is seen else 0.0)
            seen, last = running, now
            if running is None:
                continue
            ran_s = now - running[1] - min(excused_s, now - running[1])
            if ran_s > self._given_s:
                self._on_hung(f"{running[0]} hung for {ran_s:.1f} s, a run of it is given {self._given_s:.1f} s")
                return
