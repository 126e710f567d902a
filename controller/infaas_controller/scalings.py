"""What the workers' model autoscalers have done, as far as this controller has heard: for people, and for counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from infaas.clock import Clock, iso
from infaas.control import AutoscalerDocument, ScalingStepDocument, WorkerAutoscalerDocument
from infaas.domain.action import Autoscaling, ScalingStep
from infaas.domain.ids import VariantName, WorkerId
from infaas.errors import InvalidError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode

STEPS_KEPT = 1_000
WORKERS_KNOWN = 10_000
"""The last to report, of those that are there and those that are gone."""
_log = get_logger(__name__)


class Scalings:
    """Fed by the links, which repeat themselves: every report has the newest steps again."""

    def __init__(self) -> None:
        self._steps: dict[str, ScalingStepDocument] = {}
        """By their ids, in the order in which they were heard of."""
        self._said: dict[WorkerId, bytes] = {}
        self._now: dict[WorkerId, Autoscaling] = {}
        self._known: dict[WorkerId, frozenset[str]] = {}
        """Ids of the steps in each worker's last report."""
        self._count: StepCount | None = None

    def count_with(self, count: StepCount) -> None:
        self._count = count

    def heard(self, worker: WorkerId, said: bytes) -> None:
        """From a report; empty: the worker is of a version that has nothing to say."""
        if self._count is not None:
            self._count.look()
        if not said or self._said.get(worker) == said:
            return
        self._said[worker] = said
        try:
            found = decode(said, Autoscaling)
        except InvalidError as error:
            _log.warning("what a worker says of its autoscaler cannot be read", worker=worker, reason=error.text)
            return
        self._now[worker] = found
        known = self._known.pop(worker, frozenset())
        self._known[worker] = frozenset([step.id for step in found.steps])
        while len(self._known) > WORKERS_KNOWN:
            del self._known[next(iter(self._known))]
        for step in found.steps:
            if step.id in known:
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
            if self._count is not None:
                self._count.count(step)
        while len(self._steps) > STEPS_KEPT:
            del self._steps[next(iter(self._steps))]

    def left(self, worker: WorkerId) -> None:
        """There is no link to it any more; what it did is kept."""
        self._said.pop(worker, None)
        self._now.pop(worker, None)

    def busy(self, worker: WorkerId) -> Sequence[tuple[float, int]]:
        """Of each of its variants: instances that run, and that are READY."""
        said = self._now.get(worker)
        return [] if said is None else [(one.busy, one.replicas) for one in said.uses]

    def given_up(self, worker: WorkerId) -> frozenset[VariantName] | None:
        """What it has replaced by other variants; None where it does not do that, or there is no link to it."""
        said = self._now.get(worker)
        return frozenset(said.given_up) if said is not None and said.exchanges else None

    def exchanging(self) -> frozenset[WorkerId]:
        """Workers that want to be told what queries admit."""
        return frozenset([worker for worker, said in self._now.items() if said.exchanges])

    def document(self) -> AutoscalerDocument:
        """Of the workers that there is a link to."""
        return AutoscalerDocument(workers=tuple(_now(worker, said) for worker, said in sorted(self._now.items())))

    def steps(self, limit: int, matching: Mapping[str, str]) -> Sequence[ScalingStepDocument]:
        """Newest first; `matching`: fields of a step that must have these values."""
        newest = reversed(self._steps.values())
        found = [step for step in newest if all(getattr(step, key) == value for key, value in matching.items())]
        return sorted(found, key=lambda step: step.at, reverse=True)[:limit]


class Observer(Protocol):
    """Where steps are counted (`Metrics`)."""

    def observe_scaling(self, action: str, cause: str) -> None: ...


class StepCount:
    """Every controller hears of every step, and whoever comes to lead hears again of those before: it counts what was
    done from when it was first heard leading."""

    def __init__(self, observer: Observer, leads: Callable[[], bool], clock: Clock) -> None:
        self._observer = observer
        self._leads = leads
        self._clock = clock
        self._since: float | None = None

    def look(self) -> None:
        """Whenever something is heard."""
        if not self._leads():
            self._since = None
        elif self._since is None:
            self._since = self._clock.wall()

    def count(self, step: ScalingStep) -> None:
        if self._since is not None and step.at >= self._since:
            self._observer.observe_scaling(step.action.value, step.cause.value)


def _now(worker: WorkerId, said: Autoscaling) -> WorkerAutoscalerDocument:
    return WorkerAutoscalerDocument(worker=worker, is_on=said.is_on, variants=said.uses)
