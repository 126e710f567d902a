"""What the random killer may do at once: a plan is told by its seed and leaves enough to look at."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from infaas.testing.killer import Wound, plan_wounds

CONTROLLERS = ["controller-1", "controller-2"]
WORKERS = ["worker-1", "worker-2"]
SECONDS = 120.0


def plan(seed: int) -> list[Wound]:
    return plan_wounds(seed, SECONDS, CONTROLLERS, WORKERS, every_s=2.0)


@given(st.integers(0, 10_000))
def test_no_part_has_two_wounds_at_once_one_controller_is_left_and_all_heals_in_time(seed: int) -> None:
    wounds = plan(seed)
    assert wounds == plan(seed)
    for first, second in combinations(wounds, 2):
        if first.at_s <= second.at_s <= first.heals_s:
            assert first.target != second.target
            assert not {first.target, second.target} <= set(CONTROLLERS)
    assert all(wound.lasts_s > 0 and wound.heals_s < SECONDS for wound in wounds)


def test_in_time_everything_is_hit_in_every_way() -> None:
    wounds = [wound for seed in range(30) for wound in plan(seed)]
    assert {wound.target for wound in wounds} == {*CONTROLLERS, *WORKERS, "generator", "fleet", "redis"}
    assert {wound.kind for wound in wounds if wound.target == "worker-1"} == {"killed", "stopped", "cut off"}
    assert len({wound.kind for wound in wounds if wound.target == "redis"}) == 6
