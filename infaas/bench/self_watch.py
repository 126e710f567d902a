"""What a load generator sees of itself while it runs: its processor time and how late its event loop comes round."""

from __future__ import annotations

import asyncio
import time
from array import array

import numpy as np
import numpy.typing as npt

from infaas.bench.verdict import LATE_S, Generator

LOOK_EVERY_S = 0.01
_TIMER_S = 0.001
"""The event loop's timers count in milliseconds: so much late is on time."""


class SelfWatch:
    """`run` is a task's work from the beginning of a run to its cancellation."""

    def __init__(self) -> None:
        self._lags = array("d")
        self._began = time.monotonic()
        self._cpu_began = time.process_time()

    async def run(self) -> None:
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            self._lags.append(max(0.0, time.monotonic() - before - LOOK_EVERY_S - _TIMER_S))

    def seen(self, late_s: npt.NDArray[np.float64], waited: int, most_connections: int) -> Generator:
        """`late_s`: how long after its moment each query left."""
        lags = np.array(self._lags) if self._lags else np.zeros(1)
        wall_s = max(time.monotonic() - self._began, 1e-9)
        return Generator(
            cpu_share=(time.process_time() - self._cpu_began) / wall_s,
            lag_p99_s=float(np.quantile(lags, 0.99)),
            lag_max_s=float(lags.max()),
            late_share=float(np.mean(late_s > LATE_S)) if late_s.size else 0.0,
            late_p99_s=float(np.quantile(late_s, 0.99)) if late_s.size else 0.0,
            waited_for_connection=waited,
            most_connections=most_connections,
        )
