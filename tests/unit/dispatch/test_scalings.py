"""What a controller keeps of what autoscalers say, who repeat themselves with every report."""

from __future__ import annotations

from infaas_controller.scalings import STEPS_KEPT, Scalings, StepCount

from infaas.domain.action import Action, Autoscaling, Cause, ScalingStep, VariantUse
from infaas.domain.ids import VariantName, WorkerId
from infaas.rpc.codec import encode
from infaas.testing.clock import ManualClock

W = WorkerId("w1")
V = VariantName("v")


def step(number: int) -> ScalingStep:
    return ScalingStep(f"s-{number}", float(number), Action.UNLOAD, Cause.QUIET, V, f"reason {number}", 2)


def said(*numbers: int, busy: float = 0.5) -> bytes:
    return encode(Autoscaling(True, (VariantUse(V, 1, 0, busy),), tuple(step(number) for number in numbers)))


class Counted:
    """What is counted of steps, by a controller that leads or not."""

    def __init__(self, *, leads: bool = True) -> None:
        self.leads = leads
        self.seen: list[tuple[str, str]] = []
        self.clock = ManualClock(wall_s=0.0)

    def observe_scaling(self, action: str, cause: str) -> None:
        self.seen.append((action, cause))

    def of(self, scalings: Scalings) -> None:
        scalings.count_with(StepCount(self, lambda: self.leads, self.clock))


def test_a_step_that_is_said_again_is_one_step() -> None:
    scalings, counted = Scalings(), Counted()
    counted.of(scalings)
    for report in (said(1, 2), said(1, 2), said(1, 2, busy=0.7), said(2, 3)):
        scalings.heard(W, report)
    assert [found.id for found in scalings.steps(10, {})] == ["s-3", "s-2", "s-1"]
    assert counted.seen == [("unload", "quiet")] * 3
    assert scalings.document().workers[0].variants[0].busy == 0.5


def test_steps_of_many_workers_are_counted_once_each_though_not_all_are_kept() -> None:
    """Reports repeat steps that were forgotten here meanwhile."""
    scalings, counted = Scalings(), Counted()
    counted.of(scalings)
    for round in range(3):
        for worker in range(60):
            steps = tuple(ScalingStep(f"s-{worker}-{n}", 1.0, Action.UNLOAD, Cause.QUIET, V, "", 2) for n in range(20))
            uses = (VariantUse(V, 1, 0, float(round)),)
            scalings.heard(WorkerId(f"w{worker}"), encode(Autoscaling(True, uses, steps)))
    assert len(counted.seen) == 60 * 20
    assert len(scalings.steps(2_000, {})) == STEPS_KEPT


def test_whoever_leads_counts_what_was_done_since_then() -> None:
    scalings, counted = Scalings(), Counted(leads=False)
    counted.of(scalings)
    scalings.heard(W, said(1))
    counted.leads = True
    counted.clock.advance(10.0)
    scalings.heard(W, said(1, 5))
    assert counted.seen == [], "the fifth second's was another's to count"
    scalings.heard(W, said(5, 11))
    assert len(counted.seen) == 1
    counted.leads = False
    scalings.heard(W, said(11, 12))
    assert len(counted.seen) == 1


def test_of_a_worker_that_is_gone_only_what_it_did_is_kept() -> None:
    scalings = Scalings()
    scalings.heard(W, said(1))
    scalings.left(W)
    assert scalings.document().workers == ()
    assert [found.worker for found in scalings.steps(10, {})] == ["w1"]
    scalings.heard(W, said(1))
    assert len(scalings.document().workers) == 1


def test_the_oldest_are_forgotten() -> None:
    scalings = Scalings()
    for first in range(0, STEPS_KEPT + 40, 20):
        scalings.heard(W, said(*range(first, first + 20)))
    kept = scalings.steps(2 * STEPS_KEPT, {})
    assert (len(kept), kept[-1].id) == (STEPS_KEPT, "s-40")


def test_an_older_worker_says_nothing_and_nonsense_changes_nothing() -> None:
    scalings = Scalings()
    scalings.heard(W, b"")
    scalings.heard(W, b"{")
    assert scalings.document().workers == ()
    scalings.heard(W, said(1))
    scalings.heard(W, b'{"is_on": 3}')
    assert len(scalings.steps(10, {})) == 1
