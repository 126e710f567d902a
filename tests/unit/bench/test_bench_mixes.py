"""Requirement sets as they are typed, and how often each is drawn."""

from __future__ import annotations

from collections import Counter

import pytest

from infaas.bench.mixes import NO_SET, MixDraw, RequirementSet, read_set, read_sets
from infaas.client_answers import Requirements
from infaas.errors import InvalidError


def test_a_set_says_what_is_asked_for_and_how_often() -> None:
    found = read_set("latency=50, accuracy=0.95,objective=cost,max-cost=0.2,priority=critical,fallback=allow:weight=2")
    assert found.requirements == Requirements(50.0, 0.95, 0.2, "cost", "critical", True)
    assert found.weight == 2.0
    assert found.deadline_s == 0.05
    assert found.name == "latency=50,accuracy=0.95,objective=cost,max-cost=0.2,priority=critical,fallback=allow"


def test_a_set_may_have_a_name_and_state_nothing() -> None:
    assert read_set("name=plain:weight=3") == RequirementSet("plain", Requirements(), 3.0)
    assert read_sets(()) == (RequirementSet(NO_SET, Requirements()),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latncy=50", "'latncy=50' is not one KEY=VALUE"),
        ("latency", "'latency' is not one"),
        ("latency=1,latency=2", "'latency=2' is not one"),
        ("latency=nan", "is not a number"),
        ("accuracy=1.5", "accuracy is out of its range"),
        ("latency=-1", "latency is out of its range"),
        ("objective=speed", "objective is one of cost, accuracy, latency"),
        ("fallback=yes", "fallback is one of"),
        ("latency=5:2", "after ':' comes weight=NUMBER"),
        ("latency=5:weight=0", "more than 0"),
    ],
)
def test_a_set_that_cannot_be_understood_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        read_set(text)


def test_two_sets_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidError, match="two requirement sets"):
        read_sets(["latency=5", "latency=5:weight=2"])


def test_sets_are_drawn_by_weight_and_the_same_for_the_same_seed() -> None:
    sets = read_sets(["name=a:weight=3", "name=b"])
    drawn = [draw() for draw in [MixDraw(sets, 5)] * 4_000]
    again = MixDraw(sets, 5)
    assert drawn == [again() for _ in drawn]
    assert Counter(drawn)[0] / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert len(set(drawn)) == 2
