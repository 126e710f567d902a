"""What was ordered, what the provider has and which workers have come: every way in which they can differ is put
right, and whatever differs, each machine is counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.fleet import FleetStep, Observed, Requested, Stage
from infaas_controller.decide.stock import Activity, Machine, Stock, StockLimits, take_stock
from msgspec.structs import asdict, replace

from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import FleetAction, FleetCause, Intent, IntentStage
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.testing.builders import a_worker

WALL = 1_750_000_000.0
NOW = 1_000.0
AGE_S = 10.0
EPOCH, OTHER = "this", "another"
LIMITS = StockLimits(drain_s=20.0, missed_s=50.0, early_s=5.0)
NOTHING = Stock(*[()] * len(Stock.__struct_fields__))
IDLE = Activity()
STRAY = "no intent stands behind it: whoever ordered it was deposed, or it was given up"


def an_intent(stage: IntentStage = IntentStage.ORDERED, *, id: str = "f1", pool: str = "small") -> Intent:
    return Intent(id, pool, WorkerId(f"{pool}-{id}"), WALL - 500.0, stage, WALL - 300.0)


def its_machine(
    intent: Intent, *, epoch: str = EPOCH, is_starting: bool = False, has_ended: bool = False, said: str = ""
) -> Machine:
    return Machine(intent.id, intent.pool, intent.worker, intent.asked_at, epoch, is_starting, has_ended, said)


def its_worker(intent: Intent, state: WorkerState = WorkerState.READY) -> WorkerRecord:
    return a_worker(intent.worker, pool=intent.pool, state=state)


def look(
    intents: Sequence[Intent] = (),
    machines: Sequence[Machine] = (),
    workers: Iterable[WorkerRecord] = (),
    *,
    said: Activity | None = IDLE,
    age_s: float = AGE_S,
    pools: Collection[str] = ("small",),
) -> Stock:
    """`said`: by each worker; None: none is connected. `age_s`: of every intent."""
    records = {record.id: record for record in workers}
    activity = {} if said is None else dict.fromkeys(records, said)
    ages_s = {one.id: age_s for one in intents}
    return take_stock(intents, machines, records, activity, ages_s, pools, EPOCH, LIMITS, WALL, NOW)


def seen(intent: Intent, stage: Stage = Stage.READY, *, is_ours: bool = True) -> Observed:
    return Observed(intent.worker, intent.pool, stage, 0.0, 0, is_ours=is_ours)


def removal(intent: Intent, cause: FleetCause, why: str) -> FleetStep:
    return FleetStep(FleetAction.REMOVE, cause, intent.pool, why, intent.worker, intent.id)


def now_in(intent: Intent, stage: IntentStage) -> Intent:
    return dataclasses.replace(intent, stage=stage, since=WALL)


ORDERED, SERVING, MISSED, LEAVING = (an_intent(stage) for stage in IntentStage)
DRAINING = its_worker(LEAVING, WorkerState.DRAINING)
WAITED_FOR = replace(NOTHING, requested=(Requested("f1", "small", NOW - AGE_S),))


def test_what_was_ordered_is_waited_for_and_asked_for_again_as_long_as_there_is_no_machine() -> None:
    assert look([ORDERED]) == replace(WAITED_FOR, to_create=(ORDERED,))
    assert look([ORDERED], [its_machine(ORDERED, is_starting=True)]) == replace(WAITED_FOR, to_create=(ORDERED,))
    assert look([ORDERED], [its_machine(ORDERED)]) == WAITED_FOR


def test_an_order_whose_age_is_not_known_is_as_new_as_can_be() -> None:
    stock = take_stock([ORDERED], [its_machine(ORDERED)], {}, {}, {}, ["small"], EPOCH, LIMITS, WALL, NOW)
    assert stock.requested == (Requested("f1", "small", NOW),)


@pytest.mark.parametrize("intent", [ORDERED, MISSED])
@pytest.mark.parametrize("is_starting", [True, False])
@pytest.mark.parametrize(("state", "stage"), [(WorkerState.READY, Stage.READY), (WorkerState.STARTING, Stage.STARTING)])
def test_whose_worker_is_heard_serves_whatever_the_provider_says_and_for_the_second_time_as_well(
    intent: Intent, is_starting: bool, state: WorkerState, stage: Stage
) -> None:
    expected = replace(NOTHING, observed=(seen(intent, stage),), moved=(now_in(intent, IntentStage.SERVING),))
    assert look([intent], [its_machine(intent, is_starting=is_starting)], [its_worker(intent, state)]) == expected


def test_what_is_as_it_was_ordered_is_only_observed_with_what_it_says_of_itself() -> None:
    variants = frozenset({VariantName("a"), VariantName("b")})
    said = Activity(1.5, 3, is_interfered=True, is_overloaded=True, variants=variants)
    told = Observed(SERVING.worker, "small", Stage.READY, 1.5, 3, True, True, True, variants)
    stock = look([SERVING], [its_machine(SERVING)], [its_worker(SERVING)], said=said)
    assert stock == replace(NOTHING, observed=(told,))


@pytest.mark.parametrize("has_record", [True, False])
def test_a_worker_that_is_not_heard_of_is_lost_but_not_waited_for_and_taken_away_in_the_end(has_record: bool) -> None:
    workers = [its_worker(SERVING)] if has_record else []
    lost = replace(NOTHING, observed=(seen(SERVING, Stage.LOST),))
    stock = look([SERVING], [its_machine(SERVING)], workers, said=None, age_s=86_400.0)
    assert stock == replace(lost, moved=(now_in(SERVING, IntentStage.MISSED),))
    for age_s in (0.0, LIMITS.missed_s):
        assert look([MISSED], [its_machine(MISSED)], workers, said=None, age_s=age_s) == lost
    stock = look([MISSED], [its_machine(MISSED)], workers, said=None, age_s=LIMITS.missed_s + 1.0)
    step = removal(MISSED, FleetCause.LOST, "it was not heard of for 51 s")
    assert stock == replace(NOTHING, removals=(step,), going=("small",))


@pytest.mark.parametrize("intent", [ORDERED, SERVING, MISSED])
@pytest.mark.parametrize("has_come", [True, False])
def test_a_machine_that_has_ended_by_itself_is_taken_away_with_its_last_words(intent: Intent, has_come: bool) -> None:
    workers = [its_worker(intent)] if has_come else []
    failed = ("small",) if intent is ORDERED else ()
    for said, why in (("", "it has ended by itself"), ("exit status 1", "it has ended by itself; exit status 1")):
        stock = look([intent], [its_machine(intent, has_ended=True, said=said)], workers)
        assert stock == replace(NOTHING, removals=(removal(intent, FleetCause.ENDED, why),), failed=failed)
    if intent is not ORDERED:
        gone = removal(intent, FleetCause.ENDED, "the provider has no machine of that name any more")
        assert look([intent], [], workers) == replace(NOTHING, removals=(gone,))


def test_a_machine_that_served_for_a_moment_only_has_failed_its_pool() -> None:
    ended = [its_machine(SERVING, has_ended=True)]
    assert look([SERVING], ended, age_s=LIMITS.early_s - 0.1).failed == ("small",)
    assert look([SERVING], ended, age_s=LIMITS.early_s).failed == ()
    assert look([SERVING], [], age_s=0.0).failed == (), "what is not there may have been stopped with all the rest"


@pytest.mark.parametrize(
    ("machine", "has_worker"),
    [(its_machine(LEAVING, has_ended=True), True), (None, True), (its_machine(LEAVING), False), (None, False)],
    ids=["ended", "no machine", "no worker", "neither"],
)
def test_what_was_to_leave_has_left_when_its_machine_or_worker_is_gone(
    machine: Machine | None, has_worker: bool
) -> None:
    left = removal(LEAVING, FleetCause.DRAINED, "it was to leave and is not among the workers any more")
    going = ("small",) if machine is not None and not machine.has_ended else ()
    for age_s in (0.0, LIMITS.drain_s + 1.0):
        stock = look([LEAVING], [machine] if machine else [], [DRAINING] if has_worker else [], age_s=age_s)
        assert stock == replace(NOTHING, removals=(left,), going=going)


def test_who_is_to_leave_and_takes_queries_again_is_told_to_drain_again_and_who_drains_is_not() -> None:
    stock = look([LEAVING], [its_machine(LEAVING)], [its_worker(LEAVING)])
    assert stock == replace(NOTHING, observed=(seen(LEAVING, Stage.LEAVING),), to_drain=(LEAVING.worker,))
    stock = look([LEAVING], [its_machine(LEAVING)], [DRAINING])
    assert stock == replace(NOTHING, observed=(seen(LEAVING, Stage.DRAINING),))


def test_who_is_to_leave_and_is_not_connected_is_lost_for_nobody_knows_what_it_holds() -> None:
    for worker in (its_worker(LEAVING), DRAINING):
        stock = look([LEAVING], [its_machine(LEAVING)], [worker], said=None)
        assert (stock.observed, stock.moved, stock.removals) == ((seen(LEAVING, Stage.LOST),), (), ())


def test_who_drains_for_longer_than_the_limit_is_stuck_and_taken_away_connected_or_not() -> None:
    stuck = removal(LEAVING, FleetCause.STUCK, "it was to leave 21 s ago and is still there")
    for said, stage in ((IDLE, Stage.DRAINING), (None, Stage.LOST)):
        stock = look([LEAVING], [its_machine(LEAVING)], [DRAINING], said=said, age_s=LIMITS.drain_s)
        assert stock == replace(NOTHING, observed=(seen(LEAVING, stage),))
        stock = look([LEAVING], [its_machine(LEAVING)], [DRAINING], said=said, age_s=LIMITS.drain_s + 1.0)
        assert stock == replace(NOTHING, removals=(stuck,), going=("small",))


def test_a_stray_of_this_store_is_taken_away_unless_it_serves_already() -> None:
    expected = replace(NOTHING, removals=(removal(ORDERED, FleetCause.UNKNOWN, STRAY),))
    stray, worker = its_machine(ORDERED), its_worker(ORDERED)
    assert look([], [stray]) == replace(expected, going=("small",))
    assert look([], [stray], [worker], said=None) == replace(expected, going=("small",)), "nobody hears it"
    assert look([], [its_machine(ORDERED, epoch=OTHER, has_ended=True)], [worker]) == expected, "nothing to adopt"
    serving = now_in(ORDERED, IntentStage.SERVING)
    assert look([], [stray], [worker]) == replace(NOTHING, adopted=(serving,), observed=(seen(serving),))


def test_what_another_version_has_written_about_is_left_alone() -> None:
    workers = {SERVING.worker: its_worker(SERVING)}
    activity = {SERVING.worker: IDLE}
    stock = take_stock(
        [], [its_machine(SERVING)], workers, activity, {}, ["small"], EPOCH, LIMITS, WALL, NOW, unreadable=["f1"]
    )
    assert stock == replace(NOTHING, observed=(seen(SERVING, is_ours=False),))


def test_after_the_store_was_lost_what_runs_is_adopted_and_what_starts_is_waited_for_anew() -> None:
    here, coming, made, unheard = (an_intent(id=id) for id in ("here", "coming", "made", "unheard"))
    machines = [its_machine(one, epoch=OTHER, is_starting=one is coming) for one in (here, coming, made)]
    stock = look([], machines, [its_worker(here)])
    assert stock == replace(
        NOTHING,
        requested=(Requested("coming", "small", NOW), Requested("made", "small", NOW)),
        observed=(seen(here),),
        adopted=(now_in(here, IntentStage.SERVING), *[now_in(one, IntentStage.ORDERED) for one in (coming, made)]),
        to_create=(now_in(coming, IntentStage.ORDERED),),
    )
    stock = look([], [its_machine(unheard, epoch=OTHER)], [its_worker(unheard)], said=None)
    assert stock.adopted == (now_in(unheard, IntentStage.SERVING),)
    assert stock.moved == (now_in(unheard, IntentStage.MISSED),)


def test_after_the_store_was_lost_who_drains_is_taken_for_one_that_was_to_leave() -> None:
    adopted = replace(NOTHING, adopted=(now_in(LEAVING, IntentStage.LEAVING),))
    for said, stage in ((IDLE, Stage.DRAINING), (None, Stage.LOST)):
        stock = look([], [its_machine(LEAVING, epoch=OTHER)], [DRAINING], said=said)
        assert stock == replace(adopted, observed=(seen(LEAVING, stage),))


def test_a_worker_that_has_failed_is_lost_and_still_ours() -> None:
    stock = look([SERVING], [its_machine(SERVING)], [its_worker(SERVING, WorkerState.FAILED)])
    assert stock == replace(NOTHING, observed=(seen(SERVING, Stage.LOST),))


def test_a_worker_that_was_drained_by_hand_counts_as_going_and_is_not_ours_connected_or_not() -> None:
    stock = look([SERVING], [its_machine(SERVING)], [DRAINING])
    assert stock == replace(NOTHING, observed=(seen(SERVING, Stage.DRAINING, is_ours=False),))
    for intent in (SERVING, MISSED):
        unheard = look([intent], [its_machine(intent)], [DRAINING], said=None)
        assert unheard.observed == (seen(intent, Stage.LOST, is_ours=False),)


def test_a_worker_that_the_fleet_did_not_make_counts_and_is_not_ours() -> None:
    assert look([], [], [its_worker(SERVING)]) == replace(NOTHING, observed=(seen(SERVING, is_ours=False),))


def test_what_is_of_a_pool_that_is_not_kept_any_more_is_not_wanted_unless_it_leaves_already() -> None:
    ready = [its_worker(SERVING)]
    assert look([SERVING], [its_machine(SERVING)], ready, pools=["large"]).unwanted == (SERVING,)
    assert look([ORDERED], [its_machine(ORDERED)], pools=()).unwanted == (ORDERED,)
    assert look([MISSED], [its_machine(MISSED)], pools=()).unwanted == (MISSED,)
    assert look([LEAVING], [its_machine(LEAVING)], [its_worker(LEAVING)], pools=()).unwanted == ()
    adopted = look([], [its_machine(SERVING, epoch=OTHER)], ready, pools=())
    assert adopted.unwanted == adopted.adopted == (now_in(SERVING, IntentStage.SERVING),)


class Case:
    """One name, and what intents, provider and view each say of it; it may be anything."""

    def __init__(self, number: int, draw: st.DrawFn) -> None:
        stage = draw(st.sampled_from([None, *IntentStage]))
        wanted = an_intent(stage or IntentStage.ORDERED, id=f"f{number}", pool=draw(st.sampled_from(["small", "old"])))
        epoch = draw(st.sampled_from([None, EPOCH, OTHER]))
        state = draw(st.sampled_from([None, *WorkerState]))
        is_starting, has_ended = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
        self.id, self.worker, self.pool = wanted.id, wanted.worker, wanted.pool
        self.age_s = draw(st.sampled_from([None, 1.0, 30.0, 60.0]))
        self.intent = None if stage is None else wanted
        self.machine = (
            None if epoch is None else its_machine(wanted, epoch=epoch, is_starting=is_starting, has_ended=has_ended)
        )
        self.record = None if state is None else its_worker(wanted, state)
        self.is_connected = draw(st.booleans()) and self.record is not None
        self.runs = self.machine is not None and not has_ended

    def __repr__(self) -> str:
        return f"Case({self.intent}, {self.machine}, {self.record}, {self.age_s}, is_connected={self.is_connected})"


@st.composite
def any_cases(draw: st.DrawFn) -> list[Case]:
    return [Case(number, draw) for number in range(draw(st.integers(0, 5)))]


def stock_of(
    cases: Sequence[Case], intents: Sequence[Intent], *, moved: Collection[str] = (), wall: float = WALL
) -> Stock:
    """`moved`: ids of intents that are in their stage since just now."""
    machines = [one.machine for one in cases if one.machine is not None]
    workers = {one.worker: one.record for one in cases if one.record is not None}
    activity = {one.worker: IDLE for one in cases if one.is_connected}
    ages_s = {one.id: one.age_s for one in cases if one.age_s is not None and one.intent is not None}
    ages_s |= dict.fromkeys(moved, 0.0)
    return take_stock(intents, machines, workers, activity, ages_s, ["small"], EPOCH, LIMITS, wall, NOW)


def intents_of(cases: Sequence[Case]) -> list[Intent]:
    return [one.intent for one in cases if one.intent is not None]


@given(any_cases())
def test_each_is_counted_once_and_nothing_is_taken_away_that_is_wanted(cases: Sequence[Case]) -> None:
    stock = stock_of(cases, intents_of(cases))
    removed, requested = [step.request for step in stock.removals], [one.id for one in stock.requested]
    observed, adopted = {one.id: one for one in stock.observed}, [one.id for one in stock.adopted]
    for one in cases:
        if one.intent is None and one.machine is not None:
            is_stray = (one.machine.epoch == EPOCH and not one.is_connected) or not one.runs
            assert (removed.count(one.id), adopted.count(one.id)) == ((1, 0) if is_stray else (0, 1))
        stage = None if one.intent is None else one.intent.stage
        is_overdue = stage is IntentStage.MISSED and (one.age_s or 0.0) > LIMITS.missed_s
        if stage not in (None, IntentStage.LEAVING) and one.runs and not is_overdue:
            assert one.id not in removed
        is_there = one.intent is not None or one.machine is not None or one.record is not None
        assert removed.count(one.id) + requested.count(one.id) + (one.worker in observed) == is_there
        if one.worker in observed and not one.is_connected:
            assert observed[one.worker].stage is Stage.LOST, "what it holds is not known"
    assert len(observed) == len(stock.observed)
    assert sorted(stock.going) == sorted(one.pool for one in cases if one.id in removed and one.runs)
    was_adopted = {one.worker for one in stock.adopted if one.stage is IntentStage.LEAVING}
    to_leave = {one.worker for one in intents_of(cases) if one.stage is IntentStage.LEAVING} | was_adopted
    assert all(one.id in to_leave for one in stock.observed if one.stage is Stage.DRAINING and one.is_ours)
    takes = {one.worker for one in cases if one.record is not None and one.record.state is WorkerState.READY}
    assert set(stock.to_drain) == to_leave & takes & set(observed)


@given(any_cases())
def test_once_what_was_found_is_written_down_another_look_finds_nothing_new(cases: Sequence[Case]) -> None:
    intents = intents_of(cases)
    stock = stock_of(cases, intents)
    assert stock_of(cases, intents) == stock, "a look changes nothing that it looks at"
    written = {one.id: one for one in (*intents, *stock.adopted, *stock.moved)}
    again = stock_of(cases, list(written.values()), moved=[one.id for one in stock.moved])
    assert (again.moved, again.adopted) == ((), ())
    if all(one.machine is not None or one.record is None for one in cases):
        unwanted = tuple([written[one.id] for one in stock.unwanted])
        assert again == replace(stock, moved=(), adopted=(), unwanted=unwanted)


@given(any_cases(), st.floats(-1e6, 1e6))
def test_a_wall_clock_that_is_set_makes_nothing_older_or_younger(cases: Sequence[Case], set_by_s: float) -> None:
    intents = intents_of(cases)
    moved = [dataclasses.replace(one, since=one.since + set_by_s) for one in intents]
    found = without_times(stock_of(cases, intents))
    assert without_times(stock_of(cases, intents, wall=WALL + set_by_s)) == found
    assert without_times(stock_of(cases, moved)) == found


def without_times(stock: Stock) -> list[object]:
    """All of it, and of intents what is not a time on the wall."""
    return [
        dataclasses.replace(one, since=0.0) if isinstance(one, Intent) else one
        for found in asdict(stock).values()
        for one in (*found, "and")
    ]
