"""One build: from a registered graph to a result for every recipe. Owned by the generator loop, under its lease.

Stages per recipe: transform, verify and score (once per transform, whatever the number of threads), then measure.
A recipe that fails is recorded with its reason and hurts no other. What another generator finished is kept. Stopping
in the middle loses the recipe that was in the works, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infaas.clock import Clock
from infaas.domain.build import BuildOrder, BuildResult
from infaas.domain.ids import Digest, variant_name
from infaas.domain.variant import Accuracy, AccuracySource, Profile, Runtime, Variant
from infaas.errors import InvalidError, NotFoundError
from infaas.observe.log import get_logger
from infaas.repository.base import Repository
from infaas.triton.reference import is_reference
from infaas_variant_generator.attaching import plan_attached
from infaas_variant_generator.children import ChildFailedError, Event, run_child
from infaas_variant_generator.cores import CoreBroker
from infaas_variant_generator.measuring import BuildSettings, Inputs, Subject, measure
from infaas_variant_generator.plan import PlannedVariant, plan_variants
from infaas_variant_generator.publish import WHOLE, Publisher
from infaas_variant_generator.requests import (
    Inspection,
    InspectRequest,
    Made,
    MakeRequest,
    Measured,
    Rebatched,
    RebatchRequest,
)

_log = get_logger(__name__)
_PACKAGE = "infaas_variant_generator"


@dataclass(frozen=True, slots=True)
class _Artifact:
    """What making a transform's graph came to, shared by its thread counts."""

    made: Made
    digest: Digest | None
    path: Path | None


class Build:
    def __init__(
        self,
        order: BuildOrder,
        settings: BuildSettings,
        publisher: Publisher,
        repository: Repository,
        broker: CoreBroker,
        clock: Clock,
    ) -> None:
        self._order = order
        self._settings = settings
        self._publisher = publisher
        self._repository = repository
        self._broker = broker
        self._clock = clock
        self._artifacts: dict[str, _Artifact] = {}
        self._limits = settings.limits()
        self._note = ""
        """On how the registered graph was read; goes with every variant made from it."""

    async def run(self) -> BuildResult:
        """Do what is left to do and write the result that ends the build.

        Raises LeaseLostError, and UnavailableError while store or repository is away: try again later.
        """
        begin = self._clock.now()
        try:
            inputs = await self._fetch()
            inputs, fixed_batch = await self._with_any_batch(inputs)
            planned = await self._plan(inputs, fixed_batch)
        except (ChildFailedError, NotFoundError, InvalidError) as error:
            return await self._finish("failed", f"the registered graph cannot be built: {error.text}", begin)
        results = await self._publisher.results()
        finished = results.keys() | set(self._order.done)
        left = [variant for variant in planned if variant.name not in finished]
        for variant in left:
            await self._publisher.progress(variant.name, "planned", 0.0)
        for variant in left:
            results[variant.name] = await self._recipe(variant, inputs)
        return await self._finish(*summary(results, self._order.done), begin)

    async def _fetch(self) -> Inputs:
        order = self._order

        def fetch(digest: Digest | None) -> str | None:
            return None if digest is None else str(self._repository.fetch(digest))

        graph = await asyncio.to_thread(self._repository.fetch, order.artifact)
        evaluation = await asyncio.to_thread(fetch, order.evaluation)
        return Inputs(graph, evaluation, await asyncio.to_thread(fetch, order.calibration))

    async def _with_any_batch(self, inputs: Inputs) -> tuple[Inputs, int | None]:
        """A fixed-batch graph in a form that takes any batch, where it proves to answer alike; else as it is."""
        order, fixed = self._order, self._order.fixed_batch
        if fixed is None or order.max_batch_size == fixed == 1 or is_reference(inputs.graph):
            return inputs, fixed
        target = self._settings.work_dir / "dynamic.onnx"
        request = RebatchRequest(
            source=str(inputs.graph),
            target=str(target),
            inputs=order.task_spec.inputs,
            evaluation=inputs.evaluation,
            calibration=inputs.calibration,
            fixed_batch=fixed,
            max_batch_size=order.max_batch_size,
        )
        try:
            done = await run_child(f"{_PACKAGE}.rebatch", request, Rebatched, _ignore, self._limits)
        except ChildFailedError as error:
            done = Rebatched(False, f"the batch stays fixed to {fixed}: {error.text}")
        self._note = done.reason
        _log.info("fixed batch", build=order.id, is_dynamic=done.is_dynamic, reason=done.reason)
        return (replace(inputs, graph=target), None) if done.is_dynamic else (inputs, fixed)

    async def _plan(self, inputs: Inputs, fixed_batch: int | None) -> tuple[PlannedVariant, ...]:
        attached = await asyncio.to_thread(plan_attached, inputs.graph)
        if attached:
            return attached
        request = InspectRequest(str(inputs.graph), str(self._settings.warmup), self._settings.hardware)
        inspection = await run_child(f"{_PACKAGE}.inspection", request, Inspection, _ignore, self._limits)
        return plan_variants(
            inspection.facts,
            self._settings.hardware,
            inspection.transforms,
            max_batch_size=self._order.max_batch_size,
            fixed_batch=fixed_batch,
        )

    async def _recipe(self, planned: PlannedVariant, inputs: Inputs) -> BuildResult:
        """Try one recipe and write what came of it."""
        begin = self._clock.now()
        try:
            result = await self._try(planned, inputs)
        except (ChildFailedError, InvalidError, NotFoundError) as error:
            result = BuildResult(self._order.id, planned.name, None, "failed", error.text)
        result = replace(result, seconds=round(self._clock.now() - begin, 3))
        await self._publisher.result(result)
        await self._publisher.progress(
            planned.name, "done" if result.outcome == "made" else result.outcome, 1.0, result.reason
        )
        _log.info(
            "recipe finished",
            build=self._order.id,
            recipe=planned.name,
            outcome=result.outcome,
            reason=result.reason,
            seconds=result.seconds,
        )
        return result

    async def _try(self, planned: PlannedVariant, inputs: Inputs) -> BuildResult:
        if planned.skip is not None:
            return BuildResult(self._order.id, planned.name, None, "skipped", planned.skip)
        artifact = await self._artifact(planned, inputs)
        made = artifact.made
        if artifact.digest is None or artifact.path is None:
            return BuildResult(
                self._order.id, planned.name, None, made.outcome, made.reason, made.max_abs_error, made.accuracy
            )
        samples = self._settings.work_dir / f"{planned.name}.npz"
        measured = await self._measure(planned, inputs, artifact.path, samples)
        if measured.profile is None:
            reason = measured.skipped or "nothing was measured"
            return BuildResult(self._order.id, planned.name, None, "skipped", reason, made.max_abs_error, made.accuracy)
        accuracy = made.accuracy or measured.profile.accuracy or self._declared()
        profile = replace(
            measured.profile,
            accuracy=accuracy,
            samples=await asyncio.to_thread(self._repository.put_file, samples),
        )
        return BuildResult(
            self._order.id,
            planned.name,
            self._variant(planned, artifact.digest, measured.max_batch_size, profile),
            "made",
            "; ".join((self._note, *measured.notes) if self._note else measured.notes),
            made.max_abs_error,
            accuracy,
        )

    async def _artifact(self, planned: PlannedVariant, inputs: Inputs) -> _Artifact:
        """Make, verify and score a transform's graph, or what an earlier thread count made of it."""
        transform = planned.transform
        if transform.prefix not in self._artifacts:
            self._artifacts[transform.prefix] = await self._make(planned, inputs)
        return self._artifacts[transform.prefix]

    async def _make(self, planned: PlannedVariant, inputs: Inputs) -> _Artifact:
        order, recipe, transform = self._order, planned.name, planned.transform
        if transform.runtime is Runtime.TRITON:  # attached: the reference is the artifact
            return _Artifact(Made("made", ""), order.artifact, inputs.graph)
        target = self._settings.work_dir / f"{transform.prefix}.onnx"

        async def on_event(event: Event) -> None:
            await self._publisher.progress(recipe, event["stage"], 0.3 * event["fraction"])

        request = MakeRequest(
            entry=transform.entry,
            source=str(inputs.graph),
            target=str(target),
            reference=str(self._settings.work_dir / "original.npz"),
            inputs=order.task_spec.inputs,
            evaluation=inputs.evaluation,
            calibration=inputs.calibration,
            metric=order.metric,
            tolerance=self._settings.accuracy_tolerance,
            fixed_batch=planned.fixed_batch,
            max_batch_size=order.max_batch_size,
            threads=self._settings.hardware.cores,
            hardware=self._settings.hardware,
        )
        try:
            made = await run_child(f"{_PACKAGE}.make", request, Made, on_event, self._limits)
        except ChildFailedError as error:
            return _Artifact(Made("failed", error.text), None, None)
        if made.outcome != "made":
            return _Artifact(made, None, None)
        digest = await asyncio.to_thread(self._repository.put_file, target)
        return _Artifact(made, digest, await asyncio.to_thread(self._repository.fetch, digest))

    async def _measure(self, planned: PlannedVariant, inputs: Inputs, graph: Path, samples: Path) -> Measured:
        batches, fixed = planned.batches, planned.fixed_batch
        subject = Subject(planned.name, graph, planned.threads, batches, fixed, samples)
        return await measure(subject, self._order, inputs, self._settings, self._publisher, self._broker)

    async def _finish(self, outcome: str, reason: str, begin: float) -> BuildResult:
        result = BuildResult(self._order.id, WHOLE, None, outcome, reason, seconds=round(self._clock.now() - begin, 3))
        await self._publisher.result(result)
        await self._publisher.progress(WHOLE, "done" if outcome == "made" else outcome, 1.0, reason)
        return result

    def _variant(self, planned: PlannedVariant, artifact: Digest, max_batch_size: int, profile: Profile) -> Variant:
        order = self._order
        return Variant(
            name=variant_name(order.model, order.version, planned.name),
            task=order.task,
            model=order.model,
            version=order.version,
            recipe=planned.name,
            runtime=planned.transform.runtime,
            hardware=planned.transform.hardware,
            precision=planned.transform.precision,
            threads=planned.threads,
            max_batch_size=max_batch_size,
            fixed_batch=planned.fixed_batch,
            artifact=artifact,
            inputs=order.task_spec.inputs,
            outputs=order.task_spec.outputs,
            profile=profile,
        )

    def _declared(self) -> Accuracy | None:
        """What the registrant says, never mixed up with what was measured: no rows, no interval."""
        value = self._order.declared_accuracy
        if value is None:
            return None
        return Accuracy(self._order.metric, value, value, value, rows=0, source=AccuracySource.DECLARED)


def summary(results: Mapping[str, BuildResult], done: tuple[str, ...]) -> tuple[str, str]:
    """Outcome and reason of the whole build. What an earlier build left in the catalogue counts as made: only the
    registrar knows it, and it marks the version by the catalogue's variants."""
    counts = {
        outcome: sum(result.outcome == outcome for recipe, result in results.items() if recipe != WHOLE)
        for outcome in ("made", "skipped", "failed")
    }
    text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if done:
        text = f"{text}; {len(done)} done before" if text else f"{len(done)} done before"
    if counts["made"] or done:
        return "made", text
    reasons = [f"{recipe}: {result.reason}" for recipe, result in sorted(results.items()) if result.reason]
    return "failed", "no variant could be made: " + "; ".join(reasons)


async def _ignore(event: Event) -> None:
    return None
