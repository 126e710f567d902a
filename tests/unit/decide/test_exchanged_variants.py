"""Selection where workers let one variant take over from another."""

from __future__ import annotations

from collections.abc import Sequence

from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.select import select
from infaas_controller.ledger import Ledger
from infaas_controller.policies import installed_policies
from infaas_controller.spares import missing_spares

from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.query import Choice, Code, Query, Refusal
from infaas.domain.variant import Variant
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance

NOW = 1_000.0
W = WorkerId("w1")
CHEAP = a_variant("cheap", cost=0.1, p95_ms=4, per_item_ms=4, memory_mib=50)
STRONG = a_variant("strong", cost=0.2, p95_ms=6, per_item_ms=0.1, load_ms=2_000, memory_mib=200)
GIVEN_UP = frozenset([CHEAP.name])


class Place:
    def __init__(self, *loaded: str, variants: Sequence[Variant] = (CHEAP, STRONG), memory_mib: float = 1024.0) -> None:
        instances = [an_instance(f"i-{name}", variant=name) for name in loaded]
        self.view = a_view(variants=variants, workers=[a_worker(W, instances=instances, memory_mib=memory_mib)])
        self.ledger = Ledger()
        self.ledger.sync(self.view, NOW)
        self.admissions = Admissions()

    def select(self, query: Query) -> Choice | Refusal:
        policy = installed_policies()("slo")
        return select(query, self.admissions.of(query, self.view), self.ledger, policy, NOW, 0.5)

    def busy(self, instance: str, items: int) -> None:
        self.ledger.reserve(self.ledger.lanes[instance], 0, items)  # type: ignore[index]


def test_what_was_given_up_is_not_loaded_again_though_it_is_cheaper() -> None:
    place = Place("strong")
    query = a_query(at=NOW)
    loads = place.select(query)
    assert isinstance(loads, Choice)
    assert (loads.variant, loads.instance) == ("cheap", None)
    place.ledger.exchanged_at(W, GIVEN_UP)
    choice = place.select(query)
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.instance) == ("strong", "i-strong")
    reasons = {one.variant: one.reason for one in choice.candidates}
    assert reasons[CHEAP.name] == "not loaded: where it could be, another variant has taken over its work"


def test_it_is_loaded_where_nothing_else_is_on_time() -> None:
    place = Place("strong")
    place.ledger.exchanged_at(W, GIVEN_UP)
    place.busy("i-strong", 20_000)
    choice = place.select(a_query(at=NOW, latency_ms=500))
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.instance) == ("cheap", None)


def test_it_is_loaded_for_queries_that_admit_nothing_else() -> None:
    place = Place("strong")
    place.ledger.exchanged_at(W, GIVEN_UP)
    choice = place.select(a_query("cheap", at=NOW))
    assert isinstance(choice, Choice)
    assert choice.variant == "cheap"


def test_a_worker_that_is_gone_has_given_up_nothing() -> None:
    place = Place("strong")
    place.ledger.exchanged_at(W, GIVEN_UP)
    place.ledger.exchanged_at(W, None)
    choice = place.select(a_query(at=NOW))
    assert isinstance(choice, Choice)
    assert choice.variant == "cheap"
    assert not place.ledger.exchanging


def test_what_was_given_up_gets_no_spare_there() -> None:
    other = a_worker("w2", instances=[an_instance("i2", variant="cheap", worker="w2")])
    view = a_view(variants=[CHEAP], workers=[a_worker(W), other])
    ledger = Ledger()
    ledger.sync(view, NOW)
    assert missing_spares(ledger, view.variants, 2, NOW) == [("cheap", W)]
    ledger.exchanged_at(W, GIVEN_UP)
    assert missing_spares(ledger, view.variants, 2, NOW) == []


def overloaded(place: Place) -> Refusal:
    place.busy("i-cheap", 2_000)
    found = place.select(a_query(at=NOW, latency_ms=100))
    assert isinstance(found, Refusal)
    assert found.code is Code.DEADLINE_UNREACHABLE
    return found


def test_a_refusal_for_load_has_what_does_more_loaded_where_variants_are_exchanged() -> None:
    place = Place("cheap")
    assert overloaded(place).load is None, "nobody would take it away again"
    place.ledger.exchanged_at(W, frozenset())
    assert overloaded(place).load == ("strong", W)
    place.ledger.load_requested(InstanceId("made"), STRONG, W, NOW)
    assert overloaded(place).load is None, "it is on its way"


def test_what_does_not_do_clearly_more_is_not_loaded_by_a_refusal_nor_what_has_no_room() -> None:
    alike = a_variant("alike", cost=0.2, p95_ms=3.5, per_item_ms=3.5, load_ms=2_000)
    place = Place("cheap", variants=(CHEAP, alike))
    place.ledger.exchanged_at(W, frozenset())
    assert overloaded(place).load is None
    full = Place("cheap", memory_mib=200)
    full.ledger.exchanged_at(W, frozenset())
    assert overloaded(full).load is None


def test_only_variants_that_the_query_admits_are_loaded_by_its_refusal() -> None:
    place = Place("cheap")
    place.ledger.exchanged_at(W, frozenset())
    place.busy("i-cheap", 2_000)
    found = place.select(a_query(at=NOW, latency_ms=100, max_cost=0.15))
    assert isinstance(found, Refusal)
    assert found.load is None
    assert VariantName("strong") in place.view.variants
