"""Python's cycle collector, kept out of the way of queries.

A full collection walks every object of the process, which takes a busy controller a tenth of a second and more, and it
comes whenever enough objects were made: in the middle of queries with deadlines of a few milliseconds. So what is there
at the start is never walked again, and full collections are made only between queries, or when it has been too long.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from infaas.aio.every import every
from infaas.clock import Clock

YOUNG = 20_000
"""Objects made, less those gone, before the youngest are walked: well under a millisecond."""
MIDDLE = 10
_NEVER = 1_000_000
LOOK_EVERY_S = 30.0
AT_LEAST_EVERY_S = 600.0


def settle() -> None:
    """Call once, when the program has built its parts and nobody waits for it yet."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, _NEVER)


async def collect_between(is_idle: Callable[[], bool], clock: Clock) -> NoReturn:
    """An eternal task: a full collection when nobody waits for an answer, and at any rate every ten minutes."""
    await every(LOOK_EVERY_S, partial(_collect, is_idle, clock, [clock.now()]), clock=clock, name="garbage")


async def _collect(is_idle: Callable[[], bool], clock: Clock, last: list[float]) -> None:
    if clock.now() - last[0] < LOOK_EVERY_S / 2:
        return
    if is_idle() or clock.now() - last[0] >= AT_LEAST_EVERY_S:
        gc.collect()
        last[0] = clock.now()
