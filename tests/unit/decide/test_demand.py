"""How much work there is: what ran is measured, and what did not is reckoned by what ran in its place lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.demand import (
    BUSY_HALF_LIFE_S,
    BUSY_SHARE,
    FORGET_S,
    MISSED_FOR_S,
    USUAL_WEIGHT,
    DemandMemory,
    Ends,
    InstanceWork,
    Work,
    WorkerWork,
    WorkMemory,
    costs_at_work,
    loads,
    unserved,
    work_done,
)
from infaas_controller.decide.fleet import Load

from infaas.domain.cluster import ClusterView
from infaas.domain.fleet import ControllerDemand
from infaas.domain.ids import InstanceId, TaskName, VariantName, WorkerId
from infaas.domain.variant import Hardware, VariantState
from infaas.testing.builders import a_variant, a_view

NOW, WALL = 1_000.0, 1_750_000_000.0
W1, W2 = WorkerId("w1"), WorkerId("w2")
A, B, GPU, OTHER = VariantName("a"), VariantName("b"), VariantName("gpu"), VariantName("other")
VIEW = a_view(
    variants=[
        a_variant("a", cost=0.3, threads=1),
        a_variant("b", model="m2", cost=0.2, threads=2),
        a_variant("gpu", cost=0.9, hardware=Hardware.GPU),
        a_variant("disabled", cost=0.01, state=VariantState.DISABLED),
        a_variant("unmeasured", has_profile=False),
        a_variant("other", task="faces", model="m3", cost=0.01),
    ]
)


def done(id: str, variant: VariantName, busy_s: float, items: float = 0.0) -> InstanceWork:
    return InstanceWork(InstanceId(id), variant, busy_s, items)


class Looks:
    """One after the other; times are from NOW on."""

    def __init__(self) -> None:
        self.memory = WorkMemory()

    def look(self, at: float, *words: WorkerWork) -> Work | None:
        """`words`: the last one of each worker that is there."""
        work, self.memory = work_done(words, VIEW.variants, self.memory, NOW + at)
        return work

    def busy(self, at: float, *words: WorkerWork) -> Mapping[WorkerId, float]:
        work = self.look(at, *words)
        assert work is not None
        assert sum(work.busy_cores.values()) == pytest.approx(sum(work.by_hardware.values()))
        return work.busy_cores


def word(at: float, *instances: InstanceWork, of: WorkerId = W1) -> WorkerWork:
    return WorkerWork(of, NOW + at, instances)


# -- what ran


def test_a_first_look_tells_nothing() -> None:
    looks = Looks()
    assert looks.look(0, word(0, done("i", A, 500.0, 9.0))) is None
    assert looks.memory.cost_s == {}


def test_busy_cores_are_the_seconds_that_ran_times_threads_by_the_time_between_the_last_two_words() -> None:
    looks = Looks()
    before = (done("i", A, 500.0), done("j", B, 70.0), done("g", GPU, 1.0))
    looks.look(0, word(-0.9, *before), word(-0.1, done("k", B, 7.0), of=W2))
    since = (done("i", A, 501.0), done("j", B, 73.0), done("g", GPU, 2.0))
    work = looks.look(2, word(1.1, *since), word(1.9, done("k", B, 7.0), of=W2))
    on_cpu, on_gpu = (1 * 1 + 3 * 2) / 2, 1 * 1 / 2
    assert work is not None
    assert work.busy_cores == pytest.approx({W1: on_cpu + on_gpu, W2: 0.0})
    assert work.by_hardware == pytest.approx({Hardware.CPU: on_cpu, Hardware.GPU: on_gpu})


def test_a_worker_that_is_met_for_the_first_time_counts_nothing_before_its_second_word() -> None:
    looks = Looks()
    looks.look(0)
    first = word(0.5, done("i", A, 20_000.0, 9.0))
    assert looks.look(1, first) == Work({W1: 0.0}, {})
    assert looks.look(1.2, first) == Work({W1: 0.0}, {})
    assert looks.look(2, word(1.5, done("i", A, 20_000.25, 9.0))) == Work({W1: 0.25}, {Hardware.CPU: 0.25})


def test_a_worker_that_has_not_spoken_since_the_last_look_does_what_it_did() -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 500.0, 1.0)))
    last = word(1, done("i", A, 500.5, 2.0))
    known, costs = looks.look(1, last), looks.memory.cost_s
    assert known == Work({W1: 0.5}, {Hardware.CPU: 0.5})
    for at in (1.0, 1.2, 9.0, 5 * MISSED_FOR_S):
        assert looks.look(at, last) == known
    assert looks.memory.cost_s == costs, "a word is learned from once"


@given(
    phases=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    gaps_s=st.lists(st.floats(0.05, 3.0), min_size=2, max_size=20),
    on_a=st.floats(0.0, 1.0),
    on_b=st.floats(0.0, 1.0),
)
def test_a_steady_load_is_steady_however_often_one_looks_and_whenever_workers_speak(
    phases: Sequence[float], gaps_s: Sequence[float], on_a: float, on_b: float
) -> None:
    def said(number: int, at: float) -> WorkerWork:
        """Workers speak once a second."""
        spoke = (at - phases[number]) // 1.0 + phases[number]
        instances = (done("i", A, 20_000.0 + on_a * spoke), done("j", B, 20_000.0 + on_b * spoke))
        return word(spoke, *instances, of=WorkerId(f"w{number}"))

    looks, at = Looks(), 10.0
    first = [said(number, at) for number in range(len(phases))]
    looks.look(at, *first)
    for gap_s in gaps_s:
        at += gap_s
        words = [said(number, at) for number in range(len(phases))]
        expected = [on_a + 2 * on_b if last.at > met.at else 0.0 for met, last in zip(first, words, strict=True)]
        assert list(looks.busy(at, *words).values()) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0.1, 50.0), st.booleans(), st.floats(0.0, 50.0)), max_size=20))
def test_whatever_ran_is_counted_once_whoever_was_missing_meanwhile(
    looked: Sequence[tuple[float, bool, float]],
) -> None:
    looks, at, spoke_at, busy_s, counted_s, said_s = Looks(), 0.0, 0.0, 20_000.0, 0.0, 20_000.0
    looks.look(0, word(0, done("i", A, busy_s)))
    for gap_s, is_there, ran_s in looked:
        at, busy_s = at + gap_s, busy_s + ran_s
        if at - spoke_at >= MISSED_FOR_S:
            break
        if not is_there:
            assert looks.busy(at) == {}
            continue
        counted_s += looks.busy(at, word(at, done("i", A, busy_s)))[W1] * (at - spoke_at)
        spoke_at, said_s = at, busy_s
    assert counted_s == pytest.approx(said_s - 20_000.0, abs=1e-6)


def test_who_was_missing_and_is_back_counts_over_all_the_time_between_its_words() -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 20_000.0), done("g", GPU, 20_000.0)))
    assert looks.busy(1, word(1, done("i", A, 20_000.5), done("g", GPU, 20_001.0))) == {W1: 1.5}
    for at in (2, 100, 200):
        assert looks.look(at) == Work({}, {}), "one that is missing does not count"
    back = word(201, done("i", A, 20_050.5), done("g", GPU, 20_101.0))
    assert looks.look(201.5, back) == Work({W1: 0.75}, {Hardware.CPU: 0.25, Hardware.GPU: 0.5})
    assert looks.look(202.5, word(202, *back.instances)) == Work({W1: 0.0}, {Hardware.CPU: 0.0, Hardware.GPU: 0.0})


@pytest.mark.parametrize(("missing_s", "cores"), [(MISSED_FOR_S - 1, 0.5), (MISSED_FOR_S, 0.0)])
def test_who_was_missing_for_too_long_is_met_for_the_first_time_again(missing_s: float, cores: float) -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 20_000.0)))
    assert looks.busy(missing_s) == {}
    back_at = MISSED_FOR_S + 2
    back = done("i", A, 20_000.0 + 0.5 * back_at)
    assert looks.busy(back_at, word(back_at, back)) == pytest.approx({W1: cores})
    again = done("i", A, 20_000.0 + 0.5 * (back_at + 1))
    assert looks.busy(back_at + 1, word(back_at + 1, again)) == pytest.approx({W1: 0.5})


def test_an_instance_that_was_loaded_since_counts_from_its_load_on() -> None:
    looks = Looks()
    looks.look(0, word(0))
    assert looks.look(2, word(2, done("new", A, 3.0))) == Work({W1: 1.5}, {Hardware.CPU: 1.5})


def test_what_is_gone_what_counts_anew_and_what_runs_an_unknown_variant_add_nothing() -> None:
    looks, unknown = Looks(), VariantName("retired-since")
    looks.look(0, word(0, done("gone", A, 500.0, 5.0), done("anew", A, 500.0, 5.0), done("odd", unknown, 1.0, 5.0)))
    work = looks.look(2, word(2, done("anew", A, 1.0, 1.0), done("odd", unknown, 9.0, 9.0)))
    assert (work, looks.memory.cost_s) == (Work({W1: 0.0}, {Hardware.CPU: 0.0}), {})
    assert looks.look(4) == Work({}, {})


def test_the_cost_of_an_item_is_taken_as_it_is_first_and_follows_slowly_then() -> None:
    looks = Looks()

    def cost_s(at: float, busy_s: float, items: float) -> Mapping[VariantName, float]:
        looks.look(at, word(at, done("j", B, busy_s, items)))
        return looks.memory.cost_s

    assert cost_s(0, 10.0, 100.0) == {}
    assert cost_s(2, 12.0, 110.0) == pytest.approx({B: 2.0 * 2 / 10})
    usual = cost_s(4, 16.0, 120.0)
    assert usual == pytest.approx({B: 0.4 + USUAL_WEIGHT * (0.8 - 0.4)})
    assert cost_s(6, 16.0, 120.0) == usual, "it was idle"
    assert cost_s(7, 16.0, 125.0) == usual, "it took no time"
    assert work_done([], a_view().variants, looks.memory, NOW + 8)[1].cost_s == {}, "its variant is gone"


def test_items_of_idle_workers_count_at_what_they_cost_where_there_was_much_to_do() -> None:
    """As on a core that is limited: what was saved up is spent at once."""
    looks = Looks()
    looks.look(0, word(0, done("i", A, 0.0, 0.0)))
    full = looks.look(1, word(1, done("i", A, 1.0, 20.0)))
    assert full is not None
    assert full.besides == {}, "it is what busy workers pay"
    idle = looks.look(2, word(2, done("i", A, 1.25, 30.0)))
    assert idle is not None
    assert idle.by_hardware == {Hardware.CPU: 0.25}
    usual, busy = looks.memory.cost_s[A], 1.0 / 20
    assert usual < busy
    kept = 0.5 ** (1.0 / BUSY_HALF_LIFE_S)
    assert idle.besides == pytest.approx({Hardware.CPU: 10 * (busy - usual) * kept})
    assert looks.look(2.5, word(2, done("i", A, 1.25, 30.0))) == idle, "until it says something new"
    assert costs_at_work(looks.memory, NOW + 2) == pytest.approx({A: usual + (busy - usual) * kept})
    assert loads(idle, [], {}, VIEW)[Hardware.CPU].demand_cores == pytest.approx(0.25 + idle.besides[Hardware.CPU])


def test_what_busy_workers_paid_is_forgotten_slowly_and_never_makes_work_less_than_what_ran() -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 0.0, 0.0)))
    looks.look(1, word(1, done("i", A, 1.0, 20.0)))
    for second in range(2, 40):  # until what is usual is what it costs now
        looks.look(second, word(second, done("i", A, 1.0 + 0.25 * (second - 1), 20.0 + 10 * (second - 1))))
    found = [costs_at_work(looks.memory, NOW + 1 + ago)[A] for ago in (0.0, BUSY_HALF_LIFE_S, 50 * BUSY_HALF_LIFE_S)]
    assert found == pytest.approx([0.05, 0.0375, 0.025], rel=1e-3)
    dear = looks.look(41, word(41, done("i", A, 11.5, 41.0)))
    assert dear is not None
    assert dear.by_hardware[Hardware.CPU] >= (11.5 - 10.5) / 2, "an item may be dearer on an idle worker"


def test_what_was_forgotten_does_not_come_back_with_the_next_busy_look() -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 0.0, 0.0)))
    looks.look(1, word(1, done("i", A, 1.0, 5.0)))  # dear for once, by a neighbour's doing
    at = 100 * BUSY_HALF_LIFE_S
    looks.look(at, word(at, done("i", A, 1.0, 5.0)))
    for second in range(1, 41):  # and at its price for a while, half of the time
        looks.look(at + second, word(at + second, done("i", A, 1.0 + second / 2, 5.0 + 20 * second)))
    busy = looks.look(at + 41, word(at + 41, done("i", A, 21.8, 5.0 + 800 + 32)))
    assert busy is not None
    assert sum(busy.besides.values()) == pytest.approx(0.0, abs=0.01)


def test_items_of_a_busy_worker_are_not_charged_for_twice() -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 0.0, 0.0)), word(0, done("k", A, 0.0, 0.0), of=W2))
    busy_s = idle_s = 0.0
    for second in range(1, 31):
        busy_s, idle_s = busy_s + 0.9, idle_s + 0.3
        both = (
            word(second, done("i", A, busy_s, 45.0 * second)),
            word(second, done("k", A, idle_s, 30.0 * second), of=W2),
        )
        work = looks.look(second, *both)
    assert work is not None
    assert sum(work.by_hardware.values()) == pytest.approx(1.2)
    all_at_busy_price = 0.9 / 45 * 75
    assert sum(work.by_hardware.values()) + sum(work.besides.values()) <= all_at_busy_price + 0.01


@pytest.mark.parametrize(("ran_s", "is_learned"), [(BUSY_SHARE, True), (BUSY_SHARE - 0.01, False)])
def test_busy_is_an_instance_that_runs_for_that_share_of_the_time(ran_s: float, is_learned: bool) -> None:
    looks = Looks()
    looks.look(0, word(0, done("i", A, 0.0, 0.0)))
    looks.look(1, word(1, done("i", A, ran_s, 20.0)))
    assert (A in looks.memory.busy_cost_s) == is_learned


# -- what was turned away, and what waits


class Controller:
    """Looks one after the other; `totals` are since its start."""

    def __init__(self, view: ClusterView = VIEW) -> None:
        self.view = view
        self.memory = DemandMemory()

    def look(
        self,
        at: float,
        totals: Mapping[str, Ends] | None = None,
        *,
        items_each: Mapping[VariantName, float] | None = None,
        waiting: Mapping[str, float] | None = None,
    ) -> ControllerDemand:
        by_task = {TaskName(task): items for task, items in (waiting or {}).items()}
        demand, self.memory = unserved(
            totals or {}, items_each or {}, by_task, self.view, self.memory, NOW + at, WALL + at
        )
        return demand


def test_a_first_look_cannot_say_when_it_was_that_queries_were_turned_away() -> None:
    assert Controller().look(0, {"digits": Ends({A: 5.0}, wanting=7.0)}) == ControllerDemand(WALL)


def test_refused_queries_are_told_by_the_variants_that_answer_their_handle_in_items_per_second() -> None:
    controller, answered = Controller(), {A: 30.0, B: 10.0}
    controller.look(0, {"digits": Ends(answered, wanting=100.0), "m1": Ends({GPU: 1.0})})
    totals = {"digits": Ends(answered, wanting=108.0), "m1": Ends({GPU: 1.0}, wanting=2.0)}
    demand = controller.look(2, totals, items_each={A: 4.0})
    assert demand.refused == pytest.approx({A: 8 * 0.75 * 4.0 / 2, B: 8 * 0.25 / 2, GPU: 2 / 2})
    assert (demand.at, demand.waiting) == (WALL + 2, {})
    assert controller.look(4, totals, items_each={A: 4.0}).refused == {}, "nothing was turned away since"


def test_what_was_answered_long_ago_weighs_less_than_what_was_just_answered() -> None:
    controller = Controller()
    controller.look(0, {"digits": Ends({A: 1024.0})})
    demand = controller.look(10 * FORGET_S, {"digits": Ends({A: 1024.0, B: 1.0}, wanting=10 * FORGET_S)})
    assert demand.refused == pytest.approx({A: 0.5, B: 0.5})


def test_a_variant_that_is_not_published_any_more_answers_nothing_more() -> None:
    controller = Controller()
    gone = VariantName("gone")
    controller.look(0, {"digits": Ends({gone: 90.0, A: 1.0})})
    assert controller.look(2, {"digits": Ends({gone: 90.0, A: 1.0}, wanting=4.0)}).refused == {A: 2.0}


@pytest.mark.parametrize(
    ("handle", "variant"),
    [("digits", "b"), ("m1", "a"), ("gpu", "gpu"), ("disabled", None), ("unmeasured", None), ("nonsense", None)],
)
def test_where_nothing_was_answered_lately_the_cheapest_stands_for_it_that_can_be_had(
    handle: str, variant: str | None
) -> None:
    controller = Controller()
    controller.look(0)
    demand = controller.look(2, {handle: Ends(wanting=4.0)}, items_each={A: 3.0, B: 3.0, GPU: 3.0})
    assert demand.refused == ({} if variant is None else {variant: 6.0})
    assert controller.look(4, waiting={handle: 5.0}).waiting == ({} if variant is None else {variant: 5.0})


def test_what_waits_for_a_task_is_told_by_what_answers_it_under_whatever_handle() -> None:
    controller = Controller()
    totals = {"digits": Ends({A: 1.0, B: 1.0}), "m2": Ends({B: 2.0}), "faces": Ends({OTHER: 50.0})}
    assert controller.look(0, totals, waiting={"digits": 8.0, "faces": 0.0}).waiting == {A: 2.0, B: 6.0}
    assert controller.look(2, totals, waiting={"faces": 3.0}) == ControllerDemand(WALL + 2, waiting={OTHER: 3.0})


Counts = st.dictionaries(st.sampled_from([A, B, GPU]), st.integers(0, 1000).map(float))


@given(first=Counts, more=Counts, wanting=st.integers(0, 1000), elapsed_s=st.floats(0.1, 1000.0))
def test_all_that_was_turned_away_is_told_whatever_was_answered(
    first: Mapping[VariantName, float], more: Mapping[VariantName, float], wanting: int, elapsed_s: float
) -> None:
    controller = Controller()
    controller.look(0, {"digits": Ends(first)})
    totals = {name: first.get(name, 0.0) + more.get(name, 0.0) for name in (A, B, GPU)}
    demand = controller.look(elapsed_s, {"digits": Ends(totals, wanting=float(wanting))}, waiting={"digits": 9.0})
    assert sum(demand.refused.values()) * elapsed_s == pytest.approx(wanting)
    assert sum(demand.waiting.values()) == pytest.approx(9.0)


# -- all of it


def test_the_work_of_all_controllers_adds_up_with_what_workers_do_on_each_hardware() -> None:
    demands = [
        ControllerDemand(WALL, refused={A: 10.0, GPU: 2.0}, waiting={A: 100.0}),
        ControllerDemand(WALL, refused={A: 30.0}, waiting={B: 5.0, GPU: 1.0}),
    ]
    work = Work({W1: 9.0}, {Hardware.CPU: 1.5})
    found = loads(work, demands, {A: 0.05, B: 0.2, GPU: 0.5}, VIEW)
    cores = {hardware: (load.demand_cores, load.backlog_core_s) for hardware, load in found.items()}
    assert cores == {
        Hardware.CPU: pytest.approx((1.5 + 40 * 0.05, 100 * 0.05 + 5 * 0.2)),
        Hardware.GPU: pytest.approx((2 * 0.5, 1 * 0.5)),
    }


def test_where_nothing_is_asked_and_nothing_ran_there_is_no_load_and_that_is_known() -> None:
    assert loads(Work({}, {}), [], {}, VIEW) == {Hardware.CPU: Load(0.0), Hardware.GPU: Load(0.0)}


def test_an_item_costs_what_it_did_lately_and_before_it_ran_what_the_profile_says_of_full_batches() -> None:
    fixed = a_variant("fixed", p95_ms=2.0, per_item_ms=1.0, fixed_batch=4, threads=2)
    free = a_variant("free", p95_ms=2.0, per_item_ms=1.0, max_batch=2)
    view = a_view(variants=[fixed, free, a_variant("unmeasured", has_profile=False)])

    def cores(name: str, costs_s: Mapping[VariantName, float]) -> float:
        demand = ControllerDemand(WALL, refused={VariantName(name): 1000.0})
        return loads(Work({}, {}), [demand], costs_s, view)[Hardware.CPU].demand_cores

    assert fixed.profile is not None
    assert cores("fixed", {}) == pytest.approx(1000 * fixed.profile.latency_s(4, "mean_s") * 2 / 4)
    assert free.profile is not None
    assert cores("free", {}) == pytest.approx(1000 * free.profile.latency_s(2, "mean_s") / 2)
    assert cores("free", {free.name: 0.007}) == pytest.approx(7.0)
    assert cores("unmeasured", {}) == 0.0
    assert cores("unheard-of", {VariantName("unheard-of"): 1.0}) == 0.0
