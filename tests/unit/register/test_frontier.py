from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.register.frontier import dominated_by, dominates, point_of

from infaas.domain.ids import TaskName, VariantName
from infaas.domain.variant import Variant, VariantState
from infaas.testing.builders import a_variant

FIGURES = st.tuples(
    st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.sampled_from([None, 0.5, 0.8, 0.9]), st.sampled_from([0.1, 0.2, 0.4])
)


def _variants(figures: list[tuple[float, float | None, float]]) -> list[Variant]:
    return [a_variant(f"v{n}", p95_ms=p, accuracy=a, cost=c) for n, (p, a, c) in enumerate(figures)]


@given(st.lists(FIGURES, max_size=25))
def test_the_frontier_is_exactly_what_nobody_dominates(figures: list[tuple[float, float | None, float]]) -> None:
    variants = _variants(figures)
    points = {v.name: point for v in variants if (point := point_of(v)) is not None}
    found = dominated_by(variants)
    assert set(found) == set(points)
    for name, dominator in found.items():
        rivals = [other for other, point in points.items() if dominates(point, points[name])]
        assert (dominator is None) == (not rivals)
        if dominator is not None:
            assert dominator in rivals
            assert found[dominator] is None, "the dominator named is on the frontier itself"


@given(st.lists(FIGURES, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_variants_does_not_matter(
    figures: list[tuple[float, float | None, float]], random: object
) -> None:
    variants = _variants(figures)
    shuffled = list(variants)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dominated_by(variants) == dominated_by(shuffled)


def test_equals_do_not_dominate_each_other() -> None:
    found = dominated_by([a_variant("a"), a_variant("b")])
    assert found == {"a": None, "b": None}


def test_tasks_do_not_compete() -> None:
    better = a_variant("b", p95_ms=1.0, accuracy=0.99, cost=0.01)
    found = dominated_by([a_variant("a"), replace(better, task=TaskName("other"))])
    assert found[VariantName("a")] is None


def test_disabled_and_unprofiled_variants_neither_dominate_nor_are_compared() -> None:
    best = a_variant("best", p95_ms=1.0, accuracy=0.99, cost=0.01, state=VariantState.DISABLED)
    found = dominated_by([a_variant("a"), best, a_variant("none", has_profile=False)])
    assert found == {"a": None}
