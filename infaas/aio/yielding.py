"""Where an event loop and model runs share a core: the loop wakes when it comes to its turn, not at once.

By default Linux takes a core from whatever computes there as soon as something arrives for a thread that waits. For a
loop that shares its core with model runs that is dear: each query that comes interrupts a run, finds none of its code
in the processor's caches, and leaves the run's tensors driven out of them. A thread of the batch class is woken without
that (sched(7)): it gets an idle core at once, and a busy one when whoever has it has used up its slice, some three
milliseconds. What came meanwhile is read together.
"""

from __future__ import annotations

import os

from infaas.observe.log import get_logger

_log = get_logger(__name__)


def yield_to_runs() -> None:
    """For the calling thread, and those that it starts. Needs no privilege. All stays as it is where the system has no
    such class, where it forbids it, which is logged, and where somebody has chosen another class already."""
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        _log.warning("queries may interrupt runs on this core", reason=str(error))
