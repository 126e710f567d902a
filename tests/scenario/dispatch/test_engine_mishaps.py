"""What goes wrong around waiting queries, and that it costs nobody else: without sockets or real time."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from infaas_controller.commands import BatchResult, LoadOn, SendBatch
from infaas_controller.decide.options import Option, Situation
from infaas_controller.decide.policies.base import Bind, Hold, Policy, Verdict
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.engine import REVIEWED_AT_ONCE, STEPS_PER_FLUSH

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code, Priority
from infaas.testing.builders import a_variant, an_instance


def _simulated() -> ModuleType:
    name = "dispatch_simulated"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("simulated.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


SimulatedCluster = _simulated().SimulatedCluster
ONE_AT_A_TIME = a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)


def sent(cluster: object) -> list[SendBatch]:
    """Batches that leave now, to be answered by the test."""
    found: list[SendBatch] = []
    cluster._run = found.append  # type: ignore[attr-defined]
    cluster.settle()  # type: ignore[attr-defined]
    return found


def a_policy(on_arrival: Callable[[Situation], Verdict]) -> Callable[[str], Policy]:
    class Given:
        name = "given"

        def on_arrival(self, situation: Situation) -> Verdict:
            return on_arrival(situation)

    return lambda _: Given()


# -- the catalogue changes under waiting queries


@pytest.mark.parametrize("handle", ["m1", "v"])
def test_a_model_that_is_unregistered_ends_its_waiting_queries_with_404_and_the_books_are_right(handle: str) -> None:
    other = a_variant("other", model="m2", task="digits", cost=0.9)
    cluster = SimulatedCluster([ONE_AT_A_TIME, other], ["v", "other"])
    cluster.hung.add("i0-v")
    for n in range(8):
        cluster.submit(id=f"q{n}", handle=handle)
    cluster.settle()
    waiting = [f"q{n}" for n in range(2, 8)]
    models = {name: model for name, model in cluster.view.models.items() if name != "m1"}
    cluster.view = replace(cluster.view, models=models, variants={"other": other})
    cluster.engine.view_changed(cluster.view, cluster.now)
    cluster.report("i0-v", "v", InstanceState.DRAINING)
    cluster.settle()
    assert {id: cluster.ended[id] for id in waiting} == dict.fromkeys(waiting, Code.NOT_FOUND)
    assert cluster.engine.queues.items("digits") == 0
    assert cluster.engine.ledger.lines.all.items == cluster.engine.ledger.lines.all.bytes == 0
    cluster.submit(id="after", handle="other")
    cluster.run_for(40.0)
    assert cluster.ended["after"] is None
    assert cluster.engine.live == 0


# -- faults


@pytest.mark.parametrize("again", ["never", "lost", "left out", "unsent", "late"])
def test_what_a_policy_raises_ends_the_query_it_was_asked_about_and_no_other(again: str) -> None:
    """On arrival, or when it is asked again because the instance was lost, left the query out or would be too late."""
    calm, asked = SloPolicy(), Counter[str]()

    def judge(situation: Situation) -> Verdict:
        id = situation.query.id
        asked[id] += 1
        if id == "bad" and asked[id] > (again != "never"):
            raise ZeroDivisionError("of a plug-in")
        return calm.on_arrival(situation)

    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"], policies=a_policy(judge))
    cluster.submit(id="good", latency_ms=5_000)
    cluster.submit(id="bad", latency_ms=25)
    if again == "late":
        cluster.engine.ledger.seen.usual = lambda *_, **__: 10.0
    batches = sent(cluster)
    mine = next((each for each in batches if each.tickets[0].query.id == "bad"), None)
    if again == "lost":
        assert mine is not None
        cluster.report(mine.lane.id, "v", InstanceState.FAILED)
    elif again == "left out":
        assert mine is not None
        cluster.engine.done(mine.number, BatchResult(outputs={}), cluster.now)
    elif again == "unsent":
        assert mine is not None
        cluster.engine.batch_unsent(mine.number, cluster.now)
    cluster._perform()
    assert cluster.ended == {"bad": Code.INTERNAL}
    assert "policy 'slo' failed: ZeroDivisionError: of a plug-in" in cluster.texts["bad"]
    assert cluster.engine.live == 1
    for batch in batches:
        cluster.engine.done(batch.number, BatchResult(outputs={t.number: "y" for t in batch.tickets}), cluster.now)
    cluster._perform()
    assert cluster.ended["good"] is None
    assert cluster.engine.live == 0
    assert cluster.engine.ledger.is_settled()


@pytest.mark.parametrize("verdict", [Bind, Hold])
def test_a_policy_that_chooses_what_the_floor_rules_out_serves_nobody_with_it(
    verdict: Callable[[Option, str], Verdict],
) -> None:
    variants = [a_variant("poor", accuracy=0.5, cost=0.01), a_variant("good", accuracy=0.95)]

    def judge(situation: Situation) -> Verdict:
        poor = next(ruling.variant for ruling in situation.admission.rulings if ruling.variant.name == "poor")
        option = situation.best(poor)
        assert option is not None
        return verdict(option, "cheapest")

    cluster = SimulatedCluster(variants, ["poor", "good"], policies=a_policy(judge))
    cluster.submit(id="q", accuracy_min=0.9)
    cluster.run_for(1.0)
    assert cluster.ended == {"q": Code.INTERNAL}
    assert "chose poor, which floor, cap or handle rule out" in cluster.texts["q"]


def test_a_fault_while_an_instance_is_filled_costs_what_was_promised_to_it_and_nothing_stays_behind() -> None:
    variants = [ONE_AT_A_TIME, a_variant("w", model="m2", p95_ms=10, per_item_ms=10, max_batch=1)]
    cluster = SimulatedCluster(variants, ["v", "w"])
    for n in range(6):
        cluster.submit(id=f"v{n}", handle="v")
        cluster.submit(id=f"w{n}", handle="w")
    draw = cluster.engine._filling.draw

    def breaks(eligibility: object, lane: object, *given: object) -> object:
        drawn = draw(eligibility, lane, *given)
        if lane.variant == "v":  # type: ignore[attr-defined]
            raise RuntimeError("a fault of ours, after queries were popped")
        return drawn

    cluster.engine._filling.draw = breaks
    with pytest.raises(RuntimeError):
        cluster.engine.flush(cluster.now)
    cluster.engine._filling.draw = draw
    cluster.run_for(2.0)
    assert Counter((id[0], code) for id, code in cluster.ended.items()) == {("v", Code.INTERNAL): 6, ("w", None): 6}
    assert cluster.engine.live == 0
    assert cluster.engine.queues.waiting == 0
    assert cluster.engine.ledger.is_settled()


# -- losses


def test_refusals_before_a_run_are_no_deaths_however_many_there_are() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"] * 8)
    ticket = cluster.submit(id="q", latency_ms=5_000)
    for _ in range(7):
        (batch,) = sent(cluster)
        cluster.engine.done(batch.number, BatchResult(Code.SATURATED.value, "all slots taken"), cluster.now)
    assert (ticket.losses, ticket.deaths, len(ticket.excluded)) == (0, 0, 7)
    (batch,) = sent(cluster)
    cluster.engine.done(batch.number, BatchResult(outputs={ticket.number: "y"}), cluster.now)
    cluster._perform()
    assert cluster.ended == {"q": None}


def test_a_query_that_every_instance_has_refused_is_told_so_and_not_that_they_are_busy() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"])
    ticket = cluster.submit(id="q", latency_ms=5_000)
    for _ in range(2):
        (batch,) = sent(cluster)
        cluster.engine.done(batch.number, BatchResult(Code.SATURATED.value, "all slots taken"), cluster.now)
    cluster._perform()
    assert cluster.ended == {"q": Code.UNAVAILABLE}
    assert "has just failed this query" in cluster.texts["q"]
    assert ticket.deaths == 0


def test_a_query_that_the_work_before_it_made_late_is_shed_and_not_called_failed() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"])
    for n in range(8):
        cluster.submit(id=f"q{n}", latency_ms=100)
    cluster.slow["v"] = 3.0
    cluster.run_for(1.0)
    counted = Counter(cluster.ended.values())
    assert set(counted) == {None, Code.DEADLINE_UNREACHABLE, Code.DEADLINE_PASSED}, (counted, cluster.texts)
    shed = [cluster.texts[id] for id, code in cluster.ended.items() if code is Code.DEADLINE_UNREACHABLE]
    assert all("took longer than predicted" in text for text in shed), shed


@pytest.mark.parametrize("was_running", [False, True])
@pytest.mark.parametrize("code", [Code.INVALID, Code.UNSUPPORTED, Code.INTERNAL])
def test_what_a_worker_says_of_the_query_itself_is_final(code: Code, was_running: bool) -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"])
    cluster.submit(id="q", latency_ms=5_000)
    (batch,) = sent(cluster)
    cluster.engine.done(batch.number, BatchResult(code.value, "cannot be", was_running), cluster.now)
    cluster._perform()
    assert cluster.ended == {"q": code}
    assert cluster.texts["q"] == "cannot be"


def test_outputs_that_are_too_large_together_are_tried_one_by_one() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=0.1)], ["v"])
    for n in range(3):
        cluster.submit(id=f"q{n}")
    (batch,) = sent(cluster)
    assert len(batch.tickets) == 3
    cluster.engine.done(batch.number, BatchResult(Code.TOO_LARGE.value, "400 MiB", was_running=True), cluster.now)
    alone: list[SendBatch] = []
    while more := sent(cluster):
        alone += more
        for each in more:
            outputs = {t.number: "y" for t in each.tickets}
            failed = each.tickets[0].query.id == "q1"
            result = BatchResult(Code.TOO_LARGE.value, "300 MiB", True) if failed else BatchResult(outputs=outputs)
            cluster.engine.done(each.number, result, cluster.now)
    assert [len(each.tickets) for each in alone] == [1, 1, 1]
    assert cluster.ended == {"q0": None, "q1": Code.TOO_LARGE, "q2": None}


def test_when_an_instance_is_lost_the_most_urgent_find_a_place_first_and_none_is_refused_for_another_that_moves() -> (
    None
):
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"])
    cluster.hung.update({"i0-v", "i1-v"})
    for n in range(4):
        cluster.submit(id=f"hung{n}", latency_ms=20_000)
    cluster.settle()
    lanes = cluster.engine.ledger.lanes
    doomed = lanes[InstanceId("i0-v")]
    for n in range(20):
        ticket = cluster.submit(id=f"slow{n}", latency_ms=20_000, priority=Priority.SHEDDABLE)
        if ticket.lane is not doomed:
            cluster.engine.queues.move(ticket, doomed)
    tight = cluster.submit(id="tight", latency_ms=80, priority=Priority.CRITICAL)
    if tight.lane is not doomed:
        cluster.engine.queues.move(tight, doomed)
    cluster.hung.clear()
    cluster._free_at.clear()
    cluster.report("i0-v", "v", InstanceState.GONE)
    assert "tight" not in cluster.ended
    assert not [id for id in cluster.ended if id.startswith("slow")]
    assert all(deck.busy.keys() <= deck.lanes.keys() for deck in cluster.engine.ledger.decks.values())
    assert doomed.ahead[-1] == 0


# -- what takes too long


def test_a_load_that_takes_longer_than_its_profile_says_does_not_hold_its_queries_until_their_deadline() -> None:
    variants = [a_variant("cheap", cost=0.01, load_ms=100), a_variant("dear", cost=0.5)]
    cluster = SimulatedCluster(variants, ["dear"])
    plan = cluster._plan
    cluster._plan = lambda when, what, subject: plan(when + 60.0 * (what == "loaded"), what, subject)
    cluster.submit(id="q", latency_ms=2_000)
    command = cluster.engine.ledger.lanes_of("cheap")
    assert len(command) == 1
    cluster.report(command[0].id, "cheap", InstanceState.LOADING)
    cluster.run_for(2.5)
    assert cluster.ended == {"q": None}
    assert cluster.served == {"q": "dear"}


def test_an_order_to_load_that_cannot_be_sent_is_not_given_again_at_once() -> None:
    cluster = SimulatedCluster([a_variant("v", load_ms=100)], [])
    orders: list[LoadOn] = []

    def refuse_loads() -> None:
        while cluster.engine.commands:
            command = cluster.engine.commands.popleft()
            if isinstance(command, LoadOn):
                orders.append(command)
                cluster.engine.load_unsent(command.instance, cluster.now)

    cluster._perform = refuse_loads
    cluster.submit(id="q", latency_ms=5_000)
    assert len(orders) == 1
    assert cluster.engine.ledger.failed_load("v", "w1", cluster.now) == "it could not be reached"
    assert cluster.engine.ledger.failed_load("v", "w1", cluster.now + 2.0) is None


def test_of_what_a_hung_instance_holds_the_earliest_deadlines_are_looked_at_and_bound_queries_are_left() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"])
    hung, free = (cluster.engine.ledger.lanes[InstanceId(name)] for name in ("i0-v", "i1-v"))
    late = [cluster.submit(id=f"late{n}", latency_ms=20_000) for n in range(2 * REVIEWED_AT_ONCE)]
    bound = [cluster.submit(id=f"bound{n}", latency_ms=2_000, policy="static:v") for n in range(REVIEWED_AT_ONCE)]
    early = [cluster.submit(id=f"early{n}", latency_ms=2_500) for n in range(10)]
    for ticket in (*late, *bound, *early):
        if ticket.lane is not hung and ticket not in bound:
            cluster.engine.queues.move(ticket, hung)
    cluster.engine.ledger.sent(hung, 10_000, 1, cluster.now)
    cluster.clock.advance(2.0)
    cluster.engine._review(hung, cluster.now)
    assert all(ticket.lane is free for ticket in early)
    assert all(ticket.lane is hung for ticket in late)


# -- promises


def test_queries_without_an_objective_do_not_keep_out_one_that_would_run_before_them() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"])
    for n in range(500):
        cluster.submit(id=f"patient{n}")
    cluster.settle()
    cluster.run_for(3.0)
    cluster.submit(id="tight", latency_ms=200)
    cluster.run_for(0.25)
    assert cluster.ended["tight"] is None
    cluster.run_for(10.0)
    assert Counter(cluster.ended.values()) == {None: 501}


def test_an_answer_that_comes_after_the_deadline_is_not_delivered() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"])
    ticket = cluster.submit(id="q", latency_ms=100)
    (batch,) = sent(cluster)
    cluster.clock.advance(0.1)
    cluster.engine.done(batch.number, BatchResult(run_s=0.09, outputs={ticket.number: "y"}), cluster.now)
    cluster._perform()
    assert cluster.ended == {"q": Code.DEADLINE_PASSED}


def test_a_batch_is_learnt_by_what_ran_of_it() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=1)], ["v"])
    tickets = [cluster.submit(id=f"q{n}", latency_ms=9_000) for n in range(8)]
    (batch,) = sent(cluster)
    learnt: list[int] = []
    cluster.engine.ledger.seen.ran = lambda curve, items, run_s, now: learnt.append(items)
    for ticket in tickets[:4]:
        cluster.engine.cancel(ticket)
    cluster.engine.started(batch.number, cluster.now)
    cluster.engine.cancel(tickets[4])
    failed = {ticket.number: (Code.CANCELLED.value, "") for ticket in tickets[:5]}
    failed[tickets[5].number] = (Code.INVALID.value, "no")
    outputs = {ticket.number: "y" for ticket in tickets[6:]}
    result = BatchResult(run_s=0.01, outputs=outputs, failed=failed)
    assert cluster.engine.ran(batch.number, result) == (batch.lane, 4)
    cluster.engine.done(batch.number, result, cluster.now)
    assert learnt == [4], "two answered, one failed by itself, one whose caller left while it ran"


def test_a_cold_start_is_a_query_that_waited_for_a_load_wherever_it_ran_in_the_end() -> None:
    cluster = SimulatedCluster([a_variant("v", load_ms=400, p95_ms=10, per_item_ms=10, max_batch=1)], [])
    first = [cluster.submit(id=f"first{n}") for n in range(5)]
    cluster.run_for(1.0)
    later = cluster.submit(id="later")
    cluster.run_for(1.0)
    assert set(cluster.ended.values()) == {None}
    assert [ticket.is_cold for ticket in (*first, later)] == [True] * 5 + [False]


def test_a_head_that_is_barred_from_an_idle_instance_does_not_keep_the_next_from_coming_there() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v", "v"])
    cluster.hung.add("i0-v")
    busy, idle = (cluster.engine.ledger.lanes[InstanceId(name)] for name in ("i0-v", "i1-v"))
    tickets = [cluster.submit(id=f"q{n}", latency_ms=5_000 + n) for n in range(6)]
    for ticket in tickets:
        if ticket.lane is not busy:
            cluster.engine.queues.move(ticket, busy)
    tickets[2].excluded = frozenset({idle.id})
    cluster.engine._dirty = {busy.id: busy}
    cluster.settle()
    cluster.engine._dirty = {idle.id: idle}
    cluster.run_for(1.0)
    assert sorted(cluster.served) == ["q3", "q4", "q5"]


# -- scale


def test_one_flush_does_a_bounded_amount_and_the_next_ones_do_the_rest() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"] * 300, cores=300)
    for n in range(600):
        cluster.submit(id=f"q{n}", latency_ms=20_000)
    cluster.engine.flush(cluster.now)
    assert cluster.engine.has_work
    assert 0 < sum(isinstance(command, SendBatch) for command in cluster.engine.commands) <= STEPS_PER_FLUSH
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 600}


def test_a_sample_of_very_many_instances_does_not_hide_the_only_one_that_can_be_used() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"] * 200)
    instances = [
        an_instance(id, variant="v", state=InstanceState.READY if id == "i77-v" else InstanceState.DRAINING)
        for id in cluster.worker.instances
    ]
    cluster.worker = replace(cluster.worker, instances={each.id: each for each in instances})
    cluster.view = cluster.view.with_worker(cluster.worker)
    cluster.engine.view_changed(cluster.view, cluster.now)
    for n in range(20):
        cluster.submit(id=f"q{n}", latency_ms=5_000)
    cluster.run_for(2.0)
    assert Counter(cluster.ended.values()) == {None: 20}


def test_a_refused_query_leaves_nothing_behind() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], [])
    cluster.submit(id="q", latency_ms=1)
    assert cluster.ended["q"] is Code.SLO_UNSATISFIABLE
    assert (cluster.engine.live, cluster.engine.next_due()) == (0, None)


def test_beside_other_controllers_work_the_next_batch_goes_out_when_the_one_before_begins() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"])
    cluster.engine.load_reported(InstanceId("i0-v"), 2, cluster.now)
    for n in range(3):
        cluster.submit(id=f"q{n}", latency_ms=5_000)
    batches = sent(cluster)
    assert [batch.tickets[0].query.id for batch in batches] == ["q0"], "one waits at the worker, which chooses"
    cluster.engine.started(batches[0].number, cluster.now, 1)
    assert cluster.engine.has_work
    cluster.settle()
    assert [batch.tickets[0].query.id for batch in batches] == ["q0", "q1"]
    cluster.engine.done(
        batches[0].number, BatchResult(outputs={batches[0].tickets[0].number: "y"}, others=2), cluster.now
    )
    cluster.settle()
    assert len(batches) == 2, "the others have had their word again"
    cluster.engine.load_reported(InstanceId("i0-v"), 1, cluster.now)
    cluster.settle()
    assert len(batches) == 3, "nobody else is there any more"


def test_a_query_is_promised_what_other_controllers_work_leaves() -> None:
    cluster = SimulatedCluster([ONE_AT_A_TIME], ["v"])
    lane = cluster.engine.ledger.lanes[InstanceId("i0-v")]
    cluster.engine.load_reported(lane.id, 8, cluster.now)
    cluster.submit(id="tight", latency_ms=50)
    cluster.submit(id="loose", latency_ms=500)
    assert cluster.ended == {"tight": Code.DEADLINE_UNREACHABLE}
    cluster.engine.load_reported(lane.id, 0, cluster.now)
    cluster.submit(id="now", latency_ms=50)
    assert "now" not in cluster.ended
