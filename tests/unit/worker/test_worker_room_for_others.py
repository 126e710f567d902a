"""Memory that several instances of one variant hold: all but one of them leave for a variant that has none."""

from __future__ import annotations

from infaas_controller.lanes import RANKS
from infaas_controller.ledger import Ledger
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import BatchArrived, BeginLoad, InstanceTold, LoadAsked, Queries, Run
from infaas_worker.decide.instances import Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.variant import Isolation
from infaas.testing.builders import a_variant, a_view, a_worker, an_instance

A, B = VariantName("a"), VariantName("b")
NEW = InstanceId("new")
NOW = 100.0
CORES = (0, 1, 2)


def busy(*variants: VariantName, isolation: Isolation = Isolation.THREAD) -> Serving:
    """A worker of 100 bytes with an instance of 40 of each, i1 and so on; each runs a batch."""
    serving = Serving(CORES, 100, probe_interval_s=1e9)
    for place, variant in enumerate(variants, 1):
        id = InstanceId(f"i{place}")
        serving, _ = advance(serving, LoadAsked(id, variant, 1, 40, isolation=isolation), NOW)
        serving, commands = advance(serving, InstanceTold(id, Loaded(0.1, True, 1, 40)), NOW)
        (warm_up,) = (command for command in commands if isinstance(command, Run))
        serving, _ = advance(serving, InstanceTold(id, WorkDone(warm_up.key, WorkKind.WARM_UP, 0, 0.1)), NOW)
        serving, commands = advance(serving, BatchArrived(place, "c1", id, Queries.of((1, place, NOW + 60))), NOW)
        assert [command.instance for command in commands if isinstance(command, Run)] == [id]
    return serving


def states(serving: Serving) -> dict[str, InstanceState]:
    return {str(id): one.state for id, one in serving.instances.items()}


def test_one_of_two_that_work_leaves_for_a_variant_that_has_none_and_answers_what_it_has() -> None:
    serving, commands = advance(busy(A, A), LoadAsked(NEW, B, 1, 40), NOW)
    (begun,) = (command for command in commands if isinstance(command, BeginLoad))
    (leaving,) = begun.wait_for
    assert states(serving)[leaving] is InstanceState.DRAINING
    assert serving.instances[leaving].running, "and is not interrupted"
    assert sorted(state.value for state in states(serving).values()) == ["DRAINING", "LOADING", "READY"]


def test_the_one_that_does_most_stays() -> None:
    serving = busy(A, A)
    for key, id in ((1, "i1"), (2, "i2")):
        done = WorkDone(key, WorkKind.BATCH, items=3 - key, run_s=0.1)
        serving, _ = advance(serving, InstanceTold(InstanceId(id), done), NOW + 1)
    for place, id in ((11, "i1"), (12, "i2")):
        batch = BatchArrived(place, "c1", InstanceId(id), Queries.of((1, 1, NOW + 60)))
        serving, _ = advance(serving, batch, NOW + 1)
    serving, _ = advance(serving, LoadAsked(NEW, B, 1, 40), NOW + 1)
    assert states(serving) == {
        "i1": InstanceState.READY,
        "i2": InstanceState.DRAINING,
        "new": InstanceState.LOADING,
    }


def test_the_only_ones_of_their_variants_stay_at_work() -> None:
    serving, _ = advance(busy(A, B), LoadAsked(NEW, VariantName("c"), 1, 40), NOW)
    assert states(serving) == {"i1": InstanceState.READY, "i2": InstanceState.READY, "new": InstanceState.FAILED}


def test_none_leaves_for_another_of_its_own_variant() -> None:
    serving, _ = advance(busy(A, A), LoadAsked(NEW, A, 1, 40), NOW)
    assert states(serving) == {"i1": InstanceState.READY, "i2": InstanceState.READY, "new": InstanceState.FAILED}


def test_a_controller_counts_on_that_memory() -> None:
    variant, other = a_variant("a", memory_mib=40), a_variant("b", memory_mib=40)
    instances = [an_instance(id, variant="a", worker="w1") for id in ("i1", "i2")]
    worker = a_worker("w1", instances=instances, memory_mib=100)
    ledger = Ledger()
    ledger.sync(a_view(variants=[variant, other], workers=[worker]), NOW)
    deck = ledger.decks[worker.id]
    for lane in deck.lanes.values():
        ledger.reserve(lane, 2 * (RANKS - 1), 1)
    assert deck.held_bytes() == variant.memory_bytes
    assert ledger.place_for(other, NOW) is deck
