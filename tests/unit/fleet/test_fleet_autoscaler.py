"""The VM autoscaler around its rules: what it writes down and when, what it does, and what a deposed one cannot do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
from infaas_controller.decide.demand import Work
from infaas_controller.decide.stock import Activity
from infaas_controller.fleet.autoscaler import FleetAutoscaler, FleetParts
from infaas_controller.fleet.documents import FleetDesk
from infaas_controller.fleet.ledger import FleetLedger
from infaas_controller.providers.base import Machine, MachineState, Order, ProviderError
from msgspec.structs import replace

from infaas.domain.cluster import ClusterView
from infaas.domain.fleet import ControllerDemand, FleetRecord, Intent, IntentStage
from infaas.domain.ids import ControllerId, VariantName, WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.domain.variant import Hardware
from infaas.errors import NotFoundError, PreconditionError, UnavailableError
from infaas.settings import Settings, load_settings
from infaas.store.base import Lease
from infaas.store.memory import MemoryStore
from infaas.testing.builders import a_variant, a_worker
from infaas.testing.clock import ManualClock

SETTINGS = {
    "fleet": {"provider": "local", "upscale_delay_s": 1.0, "downscale_delay_s": 20.0},
    "pools": {"small": {"workers": 0, "min_workers": 1, "max_workers": 4, "cores": 1, "startup_s": 5.0}},
}
CONTROLLER = "controller"


class Machines:
    """A provider that makes nothing but remembers it all."""

    name = "local"

    def __init__(self, house: House) -> None:
        self._house = house
        self.made: dict[str, Machine] = {}
        self.intents_at_creation: list[Sequence[Intent]] = []
        self.is_broken = False
        self.lingers = False
        """What is removed is not gone at once."""

    async def list(self) -> Sequence[Machine]:
        return list(self.made.values())

    async def create(self, order: Order) -> None:
        self.intents_at_creation.append((await self._house.ledger.intents())[0])
        if self.is_broken:
            raise ProviderError("no machine is to be had")
        self.made.setdefault(order.id, Machine(order, MachineState.RUNNING))

    async def remove(self, id: str) -> bool:
        if not self.lingers and (machine := self.made.pop(id, None)) is not None:
            self._house.workers.pop(machine.order.worker, None)
        return id not in self.made


class House:
    """One controller's autoscaler on a store in memory; time is turned by hand."""

    def __init__(self, clock: ManualClock, store: MemoryStore | None = None, **fleet: object) -> None:
        self.clock = clock
        self.store = MemoryStore(clock) if store is None else store
        self.ledger = FleetLedger(self.store)
        self.machines = Machines(self)
        self.workers: dict[WorkerId, Activity] = {}
        self.states: dict[WorkerId, WorkerState] = {}
        self.demand_cores: float | None = 0.0
        self.is_listed = True
        self.lease: Lease | None = None
        self.drained: list[WorkerId] = []
        self.counted: list[tuple[str, str]] = []
        self.settings: Settings = load_settings(
            environ={}, overrides={**SETTINGS, "fleet": {**SETTINGS["fleet"], **fleet}}
        )
        self.autoscaler = FleetAutoscaler(
            self.settings,
            FleetParts(
                ControllerId("c-1"),
                self.machines,
                self.ledger,
                self,
                _Works(self),
                self,
                self,
                lambda: self.view,
                lambda: self.lease,
                clock,
            ),
        )

    # what the autoscaler asks of the parts around it

    @property
    def view(self) -> ClusterView:
        records = {
            id: a_worker(id, pool="small", cores=1, state=self.states.get(id, WorkerState.READY)) for id in self.workers
        }
        variants = {VariantName("v"): a_variant("v")}
        return ClusterView(variants=variants, workers=records, is_listed=self.is_listed)

    def look(self) -> ControllerDemand:
        return ControllerDemand(self.clock.wall())

    async def drain(self, worker: WorkerId, reason: str) -> None:
        if worker not in self.workers:
            raise NotFoundError(f"no worker is called {worker!r}")
        self.drained.append(worker)
        self.states[worker] = WorkerState.DRAINING

    def observe_scaling(self, action: str, cause: str) -> None:
        self.counted.append((action, cause))

    # what the test does

    async def lead(self, holder: str = "c-1") -> None:
        self.lease = await self.store.acquire(CONTROLLER, holder, 1_000_000)
        assert self.lease is not None

    async def looks(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.advance(2.0)
            await self.autoscaler.look()

    async def settled(self) -> None:
        """Leading, and long enough to act."""
        await self.lead()
        await self.looks(5)

    def all_come(self) -> None:
        for machine in self.machines.made.values():
            if machine.state is MachineState.RUNNING:
                self.workers.setdefault(machine.order.worker, Activity())

    def load(self, each: float) -> None:
        """So many cores in use on each worker."""
        self.workers = {id: replace(said, busy_cores=each) for id, said in self.workers.items()}
        self.demand_cores = each * len(self.workers)

    async def grown(self, workers: int) -> None:
        """To so many workers, for want of cores."""
        await self.settled()
        self.all_come()
        self.demand_cores = 0.55 * workers
        for _ in range(10):
            await self.looks()
            self.all_come()
        assert len(self.workers) == workers

    async def steps(self) -> list[FleetRecord]:
        """Oldest first."""
        return list(reversed(await self.ledger.steps()))

    async def said(self) -> list[tuple[str, str]]:
        return [(step.action.value, step.cause.value) for step in await self.steps()]


class _Works:
    def __init__(self, house: House) -> None:
        self._house = house
        self.costs_s: Mapping[VariantName, float] = {}

    def look(self) -> tuple[Work | None, Mapping[WorkerId, Activity]]:
        cores = self._house.demand_cores
        return None if cores is None else Work({}, {Hardware.CPU: cores}), self._house.workers


@pytest.fixture
def house(manual_clock: ManualClock) -> House:
    return House(manual_clock)


async def test_a_worker_is_ordered_for_the_floor_with_its_intent_and_reason_written_down_first(house: House) -> None:
    await house.settled()
    assert [len(intents) for intents in house.machines.intents_at_creation] == [1]
    (intent,) = (await house.ledger.intents())[0]
    (machine,) = house.machines.made.values()
    assert (machine.order.id, machine.order.worker, machine.order.pool) == (intent.id, intent.worker, "small")
    assert machine.order.epoch == await house.store.epoch()
    assert intent.stage is IntentStage.ORDERED
    (step,) = await house.steps()
    assert (step.action.value, step.cause.value, step.worker) == ("add", "floor", intent.worker)
    assert step.reason == "1 are wanted at least"
    assert house.counted == [("fleet-add", "floor")]
    house.all_come()
    await house.looks()
    (intent,) = (await house.ledger.intents())[0]
    assert intent.stage is IntentStage.SERVING


async def test_who_does_not_lead_does_nothing_but_say_what_it_could_not_serve(house: House) -> None:
    await house.looks(5)
    assert house.machines.made == {}
    assert len(await house.ledger.demands()) == 1
    with pytest.raises(UnavailableError, match="no controller has looked at the fleet lately"):
        await FleetDesk("local", house.ledger, 2.0).document()


async def test_a_new_leader_waits_until_it_can_have_met_the_workers_there_are(house: House) -> None:
    await house.lead()
    await house.looks(2)
    assert house.machines.made == {}
    house.is_listed = False
    await house.looks(5)
    assert house.machines.made == {}, "a view that was not read shows no workers"
    house.is_listed = True
    await house.looks(2)
    assert len(house.machines.made) == 1


async def test_load_brings_workers_and_its_end_takes_them_back_drained_first(house: House) -> None:
    await house.grown(4)
    house.demand_cores = 0.0
    held = max(house.workers)
    house.workers = {id: Activity(busy_cores=0.5, in_flight=1 if id == held else 0) for id in house.workers}
    for _ in range(60):
        await house.looks()
        assert house.machines.made, "the floor stays"
    assert len(house.machines.made) == 1
    gone = [step for step in await house.steps() if step.action.value == "remove"]
    assert {step.worker for step in gone} == set(house.drained), "nobody is taken away who was not drained"
    assert (await house.ledger.intents())[0] != []
    assert {intent.id for intent in (await house.ledger.intents())[0]} == set(house.machines.made)


async def test_a_worker_that_still_holds_queries_is_not_taken_away_before_its_time_to_drain_is_over(
    house: House,
) -> None:
    await house.grown(2)
    house.demand_cores = 0.0
    house.workers = {id: Activity(busy_cores=0.0, in_flight=3) for id in house.workers}
    while not house.drained:
        await house.looks()
    await house.looks(int(house.settings.worker.drain_timeout_s / 2.0))
    assert len(house.machines.made) == 2
    await house.looks(2)
    assert len(house.machines.made) == 1
    assert ("remove", "stuck") in await house.said()


async def test_a_leader_whose_lease_was_taken_orders_nothing(house: House) -> None:
    await house.settled()
    house.all_come()
    assert house.lease is not None
    await house.store.release(house.lease)
    assert await house.store.acquire(CONTROLLER, "c-2", 1_000_000) is not None
    house.demand_cores = 2.0
    with pytest.raises(PreconditionError):
        await house.looks(3)
    assert len(house.machines.made) == 1
    assert len((await house.ledger.intents())[0]) == 1


async def test_a_machine_that_a_deposed_leader_made_too_late_goes_at_the_next_look(house: House) -> None:
    await house.settled()
    house.all_come()
    late = Order("f-late", "small", WorkerId("small-f-late"), house.clock.wall(), await house.store.epoch())
    await house.machines.create(late)
    await house.looks()
    assert "f-late" not in house.machines.made
    (step,) = [step for step in await house.steps() if step.worker == late.worker]
    assert (step.action.value, step.cause.value) == ("remove", "unknown")


async def test_an_order_that_its_leader_did_not_live_to_give_is_given_by_the_next(house: House) -> None:
    await house.lead()
    assert house.lease is not None
    wall = house.clock.wall()
    intent = Intent("f-1", "small", WorkerId("small-f-1"), wall, IntentStage.ORDERED, wall)
    await house.ledger.put_intent(intent, house.lease)
    await house.looks(3)
    assert list(house.machines.made) == ["f-1"]


async def test_a_store_that_was_emptied_costs_no_worker(house: House) -> None:
    await house.grown(3)
    made = dict(house.machines.made)
    house.store.clear()
    await house.lead()
    house.demand_cores = 0.55 * 3
    await house.looks(20)
    assert house.machines.made == made
    assert {intent.id for intent in (await house.ledger.intents())[0]} == set(made)
    assert house.drained == []


async def test_a_worker_that_ends_by_itself_is_replaced_and_the_reason_kept(house: House) -> None:
    await house.settled()
    house.all_come()
    (id, machine), *_ = house.machines.made.items()
    await house.looks(6)
    house.machines.made[id] = replace(machine, state=MachineState.ENDED, said="its log is /x")
    await house.looks(4)
    assert id not in house.machines.made
    assert len(house.machines.made) == 1
    (step,) = [step for step in await house.steps() if step.cause.value == "ended"]
    assert step.reason == "it has ended by itself; its log is /x"


async def test_an_intent_lives_until_nothing_is_left_of_its_machine(house: House) -> None:
    await house.settled()
    (id,) = house.machines.made
    house.machines.made[id] = replace(house.machines.made[id], state=MachineState.ENDED)
    house.machines.lingers = True
    await house.looks(3)
    assert id in {intent.id for intent in (await house.ledger.intents())[0]}
    house.machines.lingers = False
    await house.looks()
    assert id not in {intent.id for intent in (await house.ledger.intents())[0]}
    assert (await house.said()).count(("remove", "ended")) == 1, "said once, whatever it takes"


async def test_a_provider_that_cannot_is_asked_again_and_given_up_with_the_reason(house: House) -> None:
    house.machines.is_broken = True
    await house.settled()
    await house.looks(10)
    said = await house.steps()
    assert ("hold", "failed") in [(step.action.value, step.cause.value) for step in said]
    assert "no machine is to be had" in next(step.reason for step in said if step.cause.value == "failed")
    assert ("give-up", "late") in [(step.action.value, step.cause.value) for step in said]
    assert len((await house.ledger.intents())[0]) <= 1


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(manual_clock: ManualClock) -> None:
    house = House(manual_clock, dry_run=True)
    await house.settled()
    await house.looks(10)
    assert house.machines.made == {}
    assert (await house.ledger.intents())[0] == []
    assert await house.said() == [("add", "floor")], "once in a while is enough"
    assert all(step.is_dry_run for step in await house.steps())
    document = await FleetDesk("local", house.ledger, 2.0).document()
    assert document.is_dry_run


async def test_a_budget_stops_growth_and_says_so(manual_clock: ManualClock) -> None:
    house = House(manual_clock, max_usd_per_hour=0.09)  # of workers at 0.04 each
    await house.grown(2)
    house.demand_cores = 5.0
    await house.looks(10)
    assert len(house.machines.made) == 2
    held = next(step for step in await house.steps() if step.cause.value == "budget")
    assert "the budget of 0.09 USD/h has 0.08 spent" in held.reason


async def test_the_document_says_what_there_is_and_what_is_wanted(house: House) -> None:
    await house.grown(2)
    document = await FleetDesk("local", house.ledger, 2.0).document()
    assert (document.provider, document.controller, document.there_cores) == ("local", "c-1", 2)
    assert document.demand_cores == pytest.approx(1.1)
    assert document.wanted_cores == pytest.approx(1.1 / 0.7, rel=0.2)
    (pool,) = document.pools
    assert (pool.name, pool.ready, pool.own, pool.ordered, pool.min_workers, pool.max_workers) == (
        "small",
        2,
        2,
        0,
        1,
        4,
    )
    assert document.spent_usd_per_hour == pytest.approx(0.08)
    assert (await FleetDesk("none", house.ledger, 2.0).document()).provider == "none"


async def test_a_worker_that_somebody_started_by_hand_counts_and_stays(house: House) -> None:
    house.workers[WorkerId("mine")] = Activity()
    await house.settled()
    await house.looks(30)
    assert house.machines.made == {}, "it is floor enough"
    assert house.drained == []


async def test_without_knowing_the_work_nothing_but_the_floor_changes(house: House) -> None:
    await house.grown(3)
    house.demand_cores = None
    await house.looks(60)
    assert len(house.machines.made) == 3
    assert dataclasses.asdict(await FleetDesk("local", house.ledger, 2.0).document())["demand_cores"] is None
