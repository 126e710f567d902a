"""What `infaas doctor` makes of the parts that a controller tells of."""

from __future__ import annotations

from infaas.up.doctor import lost_parts


def test_each_part_that_is_not_up_is_named_with_its_reason() -> None:
    up = {"state": "up", "reason": ""}
    lost = {"state": "lost", "reason": "the catalogue cannot be opened: no such server"}
    assert lost_parts({"store": up, "catalogue": lost, "workers": 1}) == [
        "catalogue lost: the catalogue cannot be opened: no such server"
    ]
    assert lost_parts({"store": {"state": "read-only", "reason": "full"}, "catalogue": up}) == ["store read-only: full"]


def test_a_controller_that_says_nothing_of_its_parts_has_lost_none() -> None:
    assert lost_parts(None) == []
