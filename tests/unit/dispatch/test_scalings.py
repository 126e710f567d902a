"""What a controller keeps of what autoscalers say, who repeat themselves with every report."""

from __future__ import annotations

from infaas_controller.scalings import STEPS_KEPT, Scalings

from infaas.domain.action import Action, Autoscaling, Cause, ScalingStep, VariantUse
from infaas.domain.ids import VariantName, WorkerId
from infaas.rpc.codec import encode

W = WorkerId("w1")
V = VariantName("v")


def step(number: int) -> ScalingStep:
    return ScalingStep(f"s-{number}", float(number), Action.UNLOAD, Cause.QUIET, V, f"reason {number}", 2)


def said(*numbers: int, busy: float = 0.5) -> bytes:
    return encode(Autoscaling(True, (VariantUse(V, 1, 0, busy),), tuple(step(number) for number in numbers)))


def test_a_step_that_is_said_again_is_one_step() -> None:
    scalings, counted = Scalings(), list[tuple[Action, Cause]]()
    scalings.on_step(lambda action, cause: counted.append((action, cause)))
    for report in (said(1, 2), said(1, 2), said(1, 2, busy=0.7), said(2, 3)):
        scalings.heard(W, report)
    assert [found.id for found in scalings.steps(10, {})] == ["s-3", "s-2", "s-1"]
    assert counted == [(Action.UNLOAD, Cause.QUIET)] * 3
    assert scalings.document().workers[0].variants[0].busy == 0.5


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
