"""A worker that is stopped in the middle of its work and goes on later blames nothing that ran."""

from __future__ import annotations

import asyncio
import signal

import pytest
from worker_values import SLOW, column, published, x

from infaas.domain.lifecycle import WorkerState
from infaas.domain.variant import Isolation
from infaas.testing import graphs
from infaas.testing.worker_driver import ControllerEnd

HANG_AFTER_S = 4.0
PAUSE_S = 7.0


@pytest.mark.long
@pytest.mark.parametrize("isolation", list(Isolation))
async def test_a_batch_that_ran_while_the_worker_was_stopped_is_answered(start, isolation):
    worker = start(worker={"hang_after_s": HANG_AFTER_S, "hang_factor": 1.0})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(3 * SLOW), max_batch=1, isolation=isolation))
        number = await end.submit("i1", x(3))
        await end.until(lambda: number in end.started)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)  # the pause itself is what is tried
        worker.signal(signal.SIGCONT)
        assert column(await end.answer(number), 0) == [3.0]
        assert (end.worker.state, end.state("i1")) == (WorkerState.READY, "READY")
