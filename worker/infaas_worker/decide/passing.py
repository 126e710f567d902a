"""A batch that runs where it arrives, at a worker that has nothing else to do: one step from here to its answer.

It comes to what `advance` makes of its arrival and its end, one after the other. That takes as long as a tiny model's
run takes itself, and there is nothing to decide: nobody waits, and all cores are free.
"""

from __future__ import annotations

from msgspec.structs import replace

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import InstanceState
from infaas_worker.decide.events import Queries
from infaas_worker.decide.instances import WorkDone, ran
from infaas_worker.decide.serving import Serving


def may_pass(serving: Serving, instance: InstanceId, queries: Queries, now: float) -> bool:
    """Whether a batch of these queries would begin at once, with all of them and alone."""
    if serving.work or serving.leases or serving.failure or serving.is_draining or not len(queries):
        return False
    one = serving.instances.get(instance)
    if one is None or one.state is not InstanceState.READY or one.threads > serving.cores:
        return False
    return min(queries.deadlines) > now


def passed(serving: Serving, instance: InstanceId, done: WorkDone, now: float) -> Serving:
    """After such a batch."""
    return replace(serving, instances={**serving.instances, instance: ran(serving.instances[instance], done, (), now)})
