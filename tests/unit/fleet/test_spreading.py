"""What the leader loads on further workers by what workers say of their instances, and what it writes down of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.spread import BUSY, HELD_S
from infaas_controller.fleet.ledger import FleetLedger
from infaas_controller.ledger import Ledger
from infaas_controller.spreading import LOOK_EVERY_S, WINDOW_S, Shares, Spreading

from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import FleetAction, FleetCause, FleetRecord
from infaas.domain.ids import ControllerId, InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.variant import Variant, VariantState
from infaas.errors import PreconditionError, UnavailableError
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.store.base import Lease
from infaas.store.memory import MemoryStore
from infaas.testing.builders import a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock

CONTROLLER = "controller"
W1, W2, W3 = WorkerId("w1"), WorkerId("w2"), WorkerId("w3")
V = a_variant("v", memory_mib=100)
OTHER = a_variant("other", memory_mib=100)
LOOKS_HELD = int(HELD_S / LOOK_EVERY_S)
"""So many looks after it was first seen to be busy, a variant is loaded elsewhere."""


def report(**busy_s: float) -> pb.WorkerReport:
    """Of how long each instance has run since it was loaded."""
    return pb.WorkerReport(loads=[pb.InstanceLoad(instance=id, busy_s=ran_s) for id, ran_s in busy_s.items()])


# -- shares


def test_an_instance_that_is_known_from_one_word_only_is_not_told() -> None:
    shares = Shares()
    assert shares.look({W1: (report(a=50.0), 0.0)}) == {}
    assert shares.look({W1: (report(a=50.5, b=0.5), 1.0)}) == {"a": pytest.approx(0.5)}
    assert shares.look({W1: (report(a=50.75, b=1.5), 2.0)}) == {"a": pytest.approx(0.375), "b": pytest.approx(1.0)}


def test_a_look_without_a_new_word_tells_what_the_last_one_said() -> None:
    shares = Shares()
    shares.look({W1: (report(a=0.0), 0.0)})
    for _ in range(3):
        assert shares.look({W1: (report(a=0.5), 1.0)}) == {"a": pytest.approx(0.5)}


@given(
    share=st.floats(0.0, 1.0),
    phase_s=st.floats(0.0, 1.0),
    every_s=st.floats(0.1, 3.0),
    gaps_s=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=20),
)
def test_a_steady_share_is_steady_whenever_one_looks_and_however_often_workers_speak(
    share: float, phase_s: float, every_s: float, gaps_s: Sequence[float]
) -> None:
    shares, at, words = Shares(), phase_s, set[float]()
    for gap_s in gaps_s:
        at += gap_s
        spoke_at = phase_s + int((at - phase_s) / every_s) * every_s
        words.add(spoke_at)
        found = shares.look({W1: (report(a=7.0 + share * spoke_at), spoke_at)})
        assert found == ({"a": pytest.approx(share, abs=1e-6)} if len(words) > 1 else {})


def test_workers_that_speak_at_different_times_are_told_side_by_side() -> None:
    shares = Shares()
    shares.look({W1: (report(a=0.0), 0.0), W2: (report(b=0.0), 0.75)})
    shares.look({W1: (report(a=0.5), 1.0), W2: (report(b=0.0), 0.75)})
    found = shares.look({W1: (report(a=0.5), 1.0), W2: (report(b=1.0), 1.75)})
    assert found == {"a": pytest.approx(0.5), "b": pytest.approx(1.0)}


def test_a_worker_that_is_gone_is_forgotten_and_must_speak_twice_when_it_is_back() -> None:
    shares = Shares()
    shares.look({W1: (report(a=0.0), 0.0), W2: (report(b=0.0), 0.0)})
    shares.look({W1: (report(a=1.0), 1.0), W2: (report(b=1.0), 1.0)})
    assert shares.look({W2: (report(b=1.5), 2.0)}) == {"b": pytest.approx(0.75)}
    assert shares.look({W1: (report(a=3.0), 3.0)}) == {}
    assert shares.look({W1: (report(a=4.0), 4.0)}) == {"a": pytest.approx(1.0)}


def test_an_instance_that_its_worker_does_not_speak_of_any_more_is_not_told() -> None:
    shares = Shares()
    shares.look({W1: (report(a=0.0, b=0.0), 0.0)})
    assert shares.look({W1: (report(b=1.0), 1.0)}) == {"b": pytest.approx(1.0)}


@pytest.mark.parametrize("run_s", [0.4, 0.6, 0.9, 1.5])
def test_an_instance_that_always_runs_is_busy_though_only_runs_that_ended_are_told(run_s: float) -> None:
    shares = Shares()
    for second in range(60):
        found = shares.look({W1: (report(a=run_s * (second // run_s)), float(second))})
        assert second < WINDOW_S or found["a"] > BUSY


def test_who_has_run_for_less_than_before_has_not_run() -> None:
    shares = Shares()
    shares.look({W1: (report(a=9.0), 0.0)})
    assert shares.look({W1: (report(a=0.5), 1.0)}) == {"a": 0.0}


# -- spreading


def worker(
    id: WorkerId,
    *variants: str,
    instance: InstanceState = InstanceState.READY,
    state: WorkerState = WorkerState.READY,
    cores: int = 2,
    memory_mib: float = 1024.0,
) -> WorkerRecord:
    there = [an_instance(f"{id}-{v}", variant=v, worker=id, state=instance) for v in variants]
    return a_worker(id, instances=there, state=state, cores=cores, memory_mib=memory_mib, pool="small")


class House:
    """One controller's spreading, on a ledger of its own and a store in memory; workers speak before each look."""

    def __init__(self, *workers: WorkerRecord, variants: Sequence[Variant] = (V, OTHER)) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.fleet_ledger = FleetLedger(self.store)
        self.ledger = Ledger()
        self.view = a_view(variants=variants, workers=workers)
        self.ledger.sync(self.view, self.clock.now())
        self.busy: dict[str, float] = {}
        """Share of the time that an instance runs; the others never do."""
        self.refuses = False
        self.asked: list[tuple[VariantName, WorkerId]] = []
        self.counted: list[tuple[str, str]] = []
        self.lease: Lease | None = None
        self._ran_s: dict[InstanceId, float] = {}
        self._reports: dict[WorkerId, tuple[pb.WorkerReport, float]] = {}
        self.spreading = Spreading(
            ControllerId("c-1"),
            self.ledger,
            lambda: self.view,
            lambda: self._reports,
            self._load,
            self.fleet_ledger,
            self,
            self.clock,
            lambda: self.lease,
        )

    def _load(self, variant: VariantName, worker: WorkerId) -> None:
        self.asked.append((variant, worker))
        if self.refuses:
            raise UnavailableError("it has just been taken", retry_after_s=1.0)
        id = InstanceId(f"{worker}-{variant}")
        self.ledger.load_requested(id, self.view.variants[variant], worker, self.clock.now())

    def observe_scaling(self, action: str, cause: str) -> None:
        self.counted.append((action, cause))

    async def lead(self) -> None:
        self.lease = await self.store.acquire(CONTROLLER, "c-1", 1_000_000)
        assert self.lease is not None

    async def looks(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(LOOK_EVERY_S)
            for record in self.view.workers.values():
                for id in record.instances:
                    self._ran_s[id] = self._ran_s.get(id, 0.0) + self.busy.get(id, 0.0) * LOOK_EVERY_S
                words = {id: self._ran_s[id] for id in record.instances}
                self._reports[record.id] = (report(**words), self.clock.now())
            await self.spreading.look()

    async def settled(self) -> None:
        """Leading, and long enough to act: two words until a share is known, and then the time that it is held."""
        await self.lead()
        await self.looks(2 + LOOKS_HELD)

    def says(self, record: WorkerRecord) -> None:
        self.view = self.view.with_worker(record)
        self.ledger.sync(self.view, self.clock.now())

    async def steps(self) -> Sequence[FleetRecord]:
        return await self.fleet_ledger.steps()


def a_house(*workers: WorkerRecord, variants: Sequence[Variant] = (V, OTHER), **busy: float) -> House:
    """By default one worker whose instance of `v` always runs, and one that is empty."""
    house = House(*(workers or (worker(W1, "v"), worker(W2))), variants=variants)
    house.busy = {"w1-v": 1.0, **{id.replace("_", "-"): share for id, share in busy.items()}}
    return house


async def test_the_leader_loads_a_busy_variant_elsewhere_and_writes_it_down_and_counts_it() -> None:
    house = a_house(worker(W1, "v"), worker(W2, "v"), worker(W3, "other"), w2_v=0.8, w3_other=0.5)
    await house.lead()
    await house.looks(1 + LOOKS_HELD)
    assert (house.asked, await house.steps(), house.counted) == ([], [], [])
    await house.looks(1)
    assert house.asked == [(V.name, W3)]
    assert house.counted == [("load", "busy")]
    (step,) = await house.steps()
    assert step == FleetRecord(
        step.id,
        house.clock.wall(),
        FleetAction.LOAD,
        FleetCause.BUSY,
        "small",
        "v: its 2 instances run 90% of the time on average; 0.5 of 2 cores are in use here",
        W3,
        controller="c-1",
        variant=V.name,
    )


async def test_without_the_lease_nothing_is_loaded_and_nothing_remembered() -> None:
    house = a_house()
    await house.looks(10)
    await house.lead()
    await house.looks(LOOKS_HELD)
    house.lease = None
    await house.looks(1)
    assert (house.asked, house.counted) == ([], [])
    await house.lead()
    await house.looks(LOOKS_HELD)
    assert house.asked == [], "the time counts from when it leads"
    await house.looks(1)
    assert house.asked == [(V.name, W2)]


async def test_a_load_that_is_refused_is_not_written_down_and_tried_again_after_as_long() -> None:
    house = a_house()
    house.refuses = True
    await house.settled()
    assert house.asked == [(V.name, W2)]
    assert (await house.steps(), house.counted) == ([], [])
    house.refuses = False
    await house.looks(LOOKS_HELD)
    assert len(house.asked) == 1
    await house.looks(1)
    assert house.asked == [(V.name, W2)] * 2
    assert [step.worker for step in await house.steps()] == [W2]
    assert house.counted == [("load", "busy")]


async def test_a_refused_load_does_not_keep_others_from_being_loaded() -> None:
    house = a_house(worker(W1, "v", "other"), worker(W2), worker(W3), w1_other=1.0)
    house.refuses = True
    await house.settled()
    assert house.asked == [(OTHER.name, W2), (V.name, W3)]


async def test_a_leader_whose_lease_was_taken_hears_of_it_when_it_writes_down_what_it_did() -> None:
    house = a_house()
    await house.lead()
    await house.looks(1 + LOOKS_HELD)
    assert house.lease is not None
    await house.store.release(house.lease)
    assert await house.store.acquire(CONTROLLER, "c-2", 1_000_000) is not None
    with pytest.raises(PreconditionError):
        await house.looks(1)
    assert house.asked == [(V.name, W2)]
    assert await house.steps() == []


async def test_nothing_more_is_loaded_of_a_variant_while_it_is_on_its_way() -> None:
    house = a_house(worker(W1, "v"), worker(W2), worker(W3))
    await house.settled()
    await house.looks(20)
    assert house.asked == [(V.name, W2)]


async def test_what_serves_well_from_where_it_was_loaded_is_not_loaded_again() -> None:
    house = a_house(worker(W1, "v"), worker(W2), worker(W3))
    await house.settled()
    await house.looks(1)
    house.busy = {"w1-v": 0.5, "w2-v": 0.5}
    house.says(worker(W2, "v"))
    await house.looks(20)
    assert house.asked == [(V.name, W2)]


@pytest.mark.parametrize("loads_for_s", [1, 2 * LOOKS_HELD])
async def test_where_it_has_just_become_ready_it_is_there_though_its_share_is_not_known_yet(loads_for_s: int) -> None:
    house = a_house(worker(W1, "v"), worker(W2))
    await house.settled()
    await house.looks(loads_for_s)
    house.says(worker(W2, "v"))
    house.busy["w2-v"] = 1.0
    await house.looks(20)
    assert house.asked == [(V.name, W2)]


@pytest.mark.parametrize(
    "second",
    [
        worker(W2, state=WorkerState.DRAINING),
        worker(W2, cores=1),
        worker(W2, memory_mib=99.0),
        worker(W2, "other", memory_mib=199.0),
        worker(W2, "other", instance=InstanceState.LOADING),
    ],
    ids=["drains", "too few cores", "too little memory", "memory that others have set aside", "loads already"],
)
async def test_a_worker_that_cannot_take_it_is_not_asked(second: WorkerRecord) -> None:
    house = a_house(worker(W1, "v"), second, variants=[a_variant("v", threads=2, memory_mib=100), OTHER])
    await house.settled()
    assert house.asked == []


async def test_the_cores_of_what_runs_there_are_not_idle() -> None:
    wide = a_variant("other", threads=2)
    house = a_house(worker(W1, "v"), worker(W2, "other"), variants=[V, wide], w2_other=0.55)
    await house.settled()
    assert house.asked == [(V.name, W2)]
    full = a_house(worker(W1, "v"), worker(W2, "other", cores=4), worker(W3), variants=[V, wide], w2_other=0.55)
    await full.settled()
    assert full.asked == [(V.name, W2)], "2.9 idle cores are more than 2"
    broad = a_house(
        worker(W1, "v"), worker(W2, "other"), variants=[a_variant("v", threads=2), wide], w2_other=0.55
    )  # fmt: skip
    await broad.settled()
    assert broad.asked == []


async def test_a_worker_that_has_just_come_takes_what_is_nearly_busy() -> None:
    house = a_house(worker(W1, "v"), worker(W2, "v"), worker(W3), w1_v=0.7, w2_v=0.7)
    await house.settled()
    assert house.asked == [(V.name, W3)]
    taken = a_house(worker(W1, "v"), worker(W2, "v"), worker(W3, "other"), w1_v=0.7, w2_v=0.7)
    await taken.settled()
    assert taken.asked == []


async def test_a_place_where_it_has_just_failed_is_passed_over() -> None:
    house = a_house(worker(W1, "v"), worker(W2), worker(W3))
    house.ledger.load_failed(V.name, W2, "no", house.clock.now())
    await house.settled()
    assert house.asked == [(V.name, W3)]


async def test_no_instance_counts_for_more_than_all_of_the_time() -> None:
    house = a_house(worker(W1, "v"), worker(W2, "v"), worker(W3), w1_v=2.0, w2_v=0.0)
    await house.settled()
    assert house.asked == []


async def test_instances_of_workers_that_drain_do_not_count() -> None:
    drains = worker(W2, "v", state=WorkerState.DRAINING)
    house = a_house(worker(W1, "v"), drains, worker(W3), w2_v=0.0)
    await house.settled()
    assert house.asked == [(V.name, W3)]


async def test_a_variant_that_may_not_be_chosen_is_not_loaded() -> None:
    house = a_house(variants=[a_variant("v", state=VariantState.DISABLED), OTHER])
    await house.settled()
    assert house.asked == []


async def test_an_idle_house_stays_as_it_is() -> None:
    house = a_house(w1_v=0.5)
    await house.lead()
    await house.looks(20)
    assert house.asked == []
