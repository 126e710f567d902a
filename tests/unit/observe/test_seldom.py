"""How often a line is written that others can provoke."""

from __future__ import annotations

from infaas.observe.seldom import KINDS, Seldom


def test_the_first_of_a_kind_is_written_at_once_and_then_one_a_minute_says_how_many_were_not() -> None:
    now = 0.0
    seldom = Seldom(60.0, lambda: now)
    said = []
    for second in range(121):
        now = float(second)
        said.append(seldom.unsaid("a"))
    assert [(second, left_out) for second, left_out in enumerate(said) if left_out is not None] == [
        (0, 0),
        (60, 59),
        (120, 59),
    ]


def test_kinds_do_not_hide_each_other_and_are_bounded() -> None:
    seldom = Seldom(60.0, lambda: 0.0)
    assert [seldom.unsaid(kind) for kind in range(10 * KINDS)] == [0] * (10 * KINDS)
    assert len(seldom._said) <= KINDS
