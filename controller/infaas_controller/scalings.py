"""What the workers' model autoscalers have done, as far as this controller has heard: for people, and for counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infaas.clock import iso
from infaas.control import AutoscalerDocument, ScalingStepDocument, WorkerAutoscalerDocument
from infaas.domain.action import Action, Autoscaling, Cause
from infaas.domain.ids import WorkerId
from infaas.errors import InvalidError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode

STEPS_KEPT = 1_000
_log = get_logger(__name__)

OnStep = Callable[[Action, Cause], None]


class Scalings:
    """Fed by the links, which repeat themselves: every report has the newest steps again."""

    def __init__(self) -> None:
        self._steps: dict[str, ScalingStepDocument] = {}
        """By their ids, in the order in which they were heard of."""
        self._said: dict[WorkerId, bytes] = {}
        self._now: dict[WorkerId, Autoscaling] = {}
        self._on_step: OnStep | None = None

    def on_step(self, callback: OnStep) -> None:
        """Called once for each step that is new here."""
        self._on_step = callback

    def heard(self, worker: WorkerId, said: bytes) -> None:
        """From a report; empty: the worker is of a version that has nothing to say."""
        if not said or self._said.get(worker) == said:
            return
        self._said[worker] = said
        try:
            found = decode(said, Autoscaling)
        except InvalidError as error:
            _log.warning("what a worker says of its autoscaler cannot be read", worker=worker, reason=error.text)
            return
        self._now[worker] = found
        for step in found.steps:
            if step.id in self._steps:
                continue
            self._steps[step.id] = ScalingStepDocument(
                id=step.id,
                at=iso(step.at),
                action=step.action.value,
                cause=step.cause.value,
                variant=step.variant,
                reason=step.reason,
                replicas=step.replicas,
                worker=worker,
                instance=step.instance,
            )
            if self._on_step is not None:
                self._on_step(step.action, step.cause)
        while len(self._steps) > STEPS_KEPT:
            del self._steps[next(iter(self._steps))]

    def left(self, worker: WorkerId) -> None:
        """There is no link to it any more; what it did is kept."""
        self._said.pop(worker, None)
        self._now.pop(worker, None)

    def document(self) -> AutoscalerDocument:
        """Of the workers that there is a link to."""
        return AutoscalerDocument(workers=tuple(_now(worker, said) for worker, said in sorted(self._now.items())))

    def steps(self, limit: int, matching: Mapping[str, str]) -> Sequence[ScalingStepDocument]:
        """Newest first; `matching`: fields of a step that must have these values."""
        found = [
            step for step in self._steps.values() if all(getattr(step, key) == value for key, value in matching.items())
        ]
        return sorted(found, key=lambda step: step.at, reverse=True)[:limit]


def _now(worker: WorkerId, said: Autoscaling) -> WorkerAutoscalerDocument:
    return WorkerAutoscalerDocument(worker=worker, is_on=said.is_on, variants=said.uses)
