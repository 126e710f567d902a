"""Where spares are loaded, and where not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from infaas_controller.ledger import Ledger
from infaas_controller.spares import Spares, missing_spares

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.variant import Variant, VariantState
from infaas.errors import UnavailableError
from infaas.store.base import Lease
from infaas.testing.builders import a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock

NOW = 1_000.0
V = a_variant("v", memory_mib=100)
OTHER = a_variant("other", memory_mib=100)


def worker(
    id: str,
    *loaded: str,
    instance: InstanceState = InstanceState.READY,
    state: WorkerState = WorkerState.READY,
    memory_mib: float = 1024.0,
) -> WorkerRecord:
    there = [an_instance(f"{id}-{v}", variant=v, worker=id, state=instance) for v in loaded]
    return a_worker(id, instances=there, state=state, memory_mib=memory_mib)


def followed(workers: Sequence[WorkerRecord], variants: Sequence[Variant]) -> tuple[Ledger, ClusterView]:
    view, ledger = a_view(variants=variants, workers=workers), Ledger()
    ledger.sync(view, NOW)
    return ledger, view


def missing(workers: Sequence[WorkerRecord], wanted: int, variants: Sequence[Variant] = (V,)) -> list[tuple[str, str]]:
    ledger, view = followed(workers, variants)
    return [(str(v), str(w)) for v, w in missing_spares(ledger, view.variants, wanted, NOW)]


def test_a_variant_that_serves_on_one_worker_is_loaded_on_others_until_there_are_enough() -> None:
    three = [worker("w1", "v"), worker("w2"), worker("w3")]
    assert missing(three, 1) == []
    assert missing(three, 2) == [("v", "w2")]
    assert missing(three, 3) == [("v", "w2"), ("v", "w3")]
    assert missing(three, 4) == [("v", "w2"), ("v", "w3")]


def test_what_serves_nowhere_yet_gets_no_spare() -> None:
    assert missing([worker("w1"), worker("w2")], 2) == []
    assert missing([worker("w1", "v", instance=InstanceState.LOADING), worker("w2")], 2) == []


def test_an_instance_that_loads_counts_and_its_worker_is_given_nothing_more_meanwhile() -> None:
    loading = worker("w2", "v", instance=InstanceState.LOADING)
    assert missing([worker("w1", "v"), loading], 2) == []
    assert missing([worker("w1", "v", "other"), loading], 2, [V, OTHER]) == []


def test_what_is_being_unloaded_is_not_loaded_again() -> None:
    assert missing([worker("w1", "v"), worker("w2", "v", instance=InstanceState.DRAINING)], 2) == []
    ledger, view = followed([worker("w1", "v"), worker("w2", "v"), worker("w3")], [V])
    for lane in ledger.lanes_of(VariantName("v")):
        lane.is_leaving = True
    ledger.sync(view.with_worker(worker("w2")), NOW)  # one is gone, the other has not said anything yet
    assert missing_spares(ledger, view.variants, 2, NOW) == []


def test_one_load_at_a_time_per_worker() -> None:
    both = [worker("w1", "v", "other"), worker("w2")]
    assert missing(both, 2, [V, OTHER]) == [("other", "w2")]


def test_a_spare_never_pushes_out_what_is_loaded_even_if_it_is_idle() -> None:
    idle = a_variant("other", memory_mib=100, state=VariantState.DISABLED)
    assert missing([worker("w1", "v"), worker("w2", "other", memory_mib=150)], 2, [V, idle]) == []
    assert missing([worker("w1", "v"), worker("w2", "other", memory_mib=250)], 2, [V, idle]) == [("v", "w2")]


def test_the_worker_that_holds_least_is_taken() -> None:
    unwanted = a_variant("other", memory_mib=100, state=VariantState.DISABLED)
    assert missing([worker("w1", "v"), worker("w2", "other"), worker("w3")], 2, [V, unwanted]) == [("v", "w3")]


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.FAILED])
def test_a_worker_that_takes_nothing_new_gets_none_and_its_instances_do_not_count(state: WorkerState) -> None:
    assert missing([worker("w1", "v"), worker("w2", state=state)], 2) == []
    assert missing([worker("w1", "v"), worker("w2", "v", state=state), worker("w3")], 2) == [("v", "w3")]


def test_a_place_that_has_just_failed_and_too_few_cores_are_passed_over() -> None:
    ledger, view = followed([worker("w1", "v"), worker("w2")], [V])
    ledger.load_failed(VariantName("v"), WorkerId("w2"), "no", NOW)
    assert missing_spares(ledger, view.variants, 2, NOW) == []
    assert missing([worker("w1", "v"), worker("w2")], 2, [a_variant("v", threads=4)]) == []


def test_a_variant_that_may_not_be_chosen_gets_none() -> None:
    assert missing([worker("w1", "v"), worker("w2")], 2, [a_variant("v", state=VariantState.DISABLED)]) == []


@pytest.mark.parametrize(("leads", "wanted", "expected"), [(True, 2, 1), (False, 2, 0), (True, 1, 0)])
def test_only_the_leader_loads_spares_and_only_when_asked_to(leads: bool, wanted: int, expected: int) -> None:
    ledger, view = followed([worker("w1", "v"), worker("w2")], [V])
    lease = Lease("controller", "c1", 1, 6.0) if leads else None
    asked: list[tuple[str, str]] = []

    def load(variant: VariantName, worker: WorkerId) -> None:
        asked.append((variant, worker))
        raise UnavailableError("it has just been taken", retry_after_s=1.0)

    asyncio.run(Spares(ledger, lambda: view, load, wanted, ManualClock(), lambda: lease).look())
    assert len(asked) == expected
