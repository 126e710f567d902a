"""The queries of a batch as columns: what is left of them when some are cancelled or their time is over."""

from __future__ import annotations

from infaas_worker.decide.events import Queries

THREE = Queries.of((7, 1, 2.0), (8, 4, 1.0), (9, 2, 3.0))


def test_every_column_keeps_the_order_of_the_queries() -> None:
    assert (THREE.ids, THREE.items, THREE.deadlines) == ((7, 8, 9), (1, 4, 2), (2.0, 1.0, 3.0))
    assert len(THREE) == 3
    assert (Queries.of(), len(Queries())) == (Queries(), 0)


def test_without_some_the_others_keep_what_is_theirs() -> None:
    assert THREE.but({8, 99}) == Queries.of((7, 1, 2.0), (9, 2, 3.0))
    assert THREE.but({7, 8, 9}) == Queries()
    assert THREE.but(()) is THREE


def test_a_query_is_alive_until_its_deadline_and_not_at_it() -> None:
    assert THREE.alive(0.5) is THREE
    assert THREE.alive(1.0) == Queries.of((7, 1, 2.0), (9, 2, 3.0))
    assert THREE.alive(2.0) == Queries.of((9, 2, 3.0))
    assert THREE.alive(3.0) == Queries()
