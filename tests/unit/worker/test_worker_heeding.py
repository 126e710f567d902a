"""What a worker makes of what controllers say about the queries that they send."""

from __future__ import annotations

from infaas_worker.decide.exchange import Wanted
from infaas_worker.heeding import KINDS_KEPT, NAMED_FOR_S, WORTH_S, Heeding

from infaas.domain.ids import VariantName
from infaas.domain.wish import Wish, Wishes
from infaas.testing.builders import a_variant

NOW = 100.0
V = VariantName("v")


def wish(*admitted: str, items: int = 4, queries: int = 2, latency_s: float = 0.1) -> Wishes:
    return Wishes((Wish(V, tuple(VariantName(name) for name in admitted), items, queries, latency_s),))


def test_only_what_all_of_them_admit_is_wanted_and_the_tightest_time_counts() -> None:
    heeding = Heeding()
    heeding.heard(wish("a", "b", latency_s=0.2), NOW)
    heeding.heard(wish("b", "c", items=8, queries=1), NOW)
    assert heeding.wanted(NOW) == {V: Wanted(frozenset([VariantName("b")]), 0.1, 4.0)}


def test_a_word_counts_for_a_while_and_the_last_one_until_there_is_another() -> None:
    heeding = Heeding()
    heeding.heard(wish("a"), NOW)
    heeding.heard(wish("a", "b"), NOW + 1.0)
    assert heeding.wanted(NOW + 2.0)[V].admitted == {"a"}
    assert heeding.wanted(NOW + WORTH_S + 0.5)[V].admitted == {"a", "b"}
    assert heeding.wanted(NOW + 10 * WORTH_S)[V].admitted == {"a", "b"}


def test_rare_queries_count_beside_many_others() -> None:
    heeding = Heeding()
    heeding.heard(wish("strict"), NOW)
    for second in range(200):
        heeding.heard(wish("strict", "lax", latency_s=0.1 + second / 1e6), NOW + second)
    assert heeding.wanted(NOW + 200)[V].admitted == {"strict"}


def test_what_is_kept_is_bounded_whatever_is_asked_for() -> None:
    heeding = Heeding()
    for number in range(3 * KINDS_KEPT):
        heeding.heard(wish(f"v{number}"), NOW)
    assert heeding.wanted(NOW)[V].admitted == frozenset()
    assert len(heeding._words[V]) == KINDS_KEPT


def test_variants_that_nobody_named_lately_may_be_gone_and_are_not_loaded() -> None:
    heeding = Heeding()
    a = a_variant("a")
    heeding.heard(Wishes((), (a,)), NOW)
    assert heeding.variants(NOW + NAMED_FOR_S) == {a.name: a}
    assert heeding.variants(NOW + NAMED_FOR_S + 1.0) == {}


def test_what_was_said_of_a_variant_that_is_gone_is_forgotten() -> None:
    heeding = Heeding()
    heeding.heard(wish("a"), NOW)
    heeding.forget_but(frozenset([V]))
    assert heeding.wanted(NOW)
    heeding.forget_but(frozenset())
    assert heeding.wanted(NOW) == {}
