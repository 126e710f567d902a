"""One profiling: a variant that exists is measured anew, as a build measures a new one. Owned by the generator loop.

Nothing is transformed: the variant's own bytes are measured up to the batch it may hold. Its accuracy stays, because
neither its bytes nor the evaluation set have changed. One result ends it; stopping in the middle loses the measurement
in the works, and the next generator begins it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from infaas.clock import Clock
from infaas.domain.build import BuildOrder, BuildResult
from infaas.domain.ids import Digest
from infaas.domain.variant import Variant
from infaas.errors import InvalidError, NotFoundError
from infaas.observe.log import get_logger
from infaas.repository.base import Repository
from infaas.triton.reference import is_reference
from infaas_variant_generator.children import ChildFailedError, Event, run_child
from infaas_variant_generator.cores import CoreBroker
from infaas_variant_generator.measuring import BuildSettings, Inputs, Subject, measure
from infaas_variant_generator.plan import batch_sizes
from infaas_variant_generator.publish import WHOLE, Publisher
from infaas_variant_generator.requests import Inspection, InspectRequest

_log = get_logger(__name__)


class Profiling:
    def __init__(
        self,
        order: BuildOrder,
        variant: Variant,
        settings: BuildSettings,
        publisher: Publisher,
        repository: Repository,
        broker: CoreBroker,
        clock: Clock,
    ) -> None:
        self._order = order
        self._variant = variant
        self._settings = settings
        self._publisher = publisher
        self._repository = repository
        self._broker = broker
        self._clock = clock

    async def run(self) -> BuildResult:
        """Measure and write the result that ends the order.

        Raises LeaseLostError, and UnavailableError while store or repository is away: try again later.
        """
        begin = self._clock.now()
        try:
            result = await self._measured()
        except (ChildFailedError, NotFoundError, InvalidError) as error:
            result = BuildResult(self._order.id, WHOLE, None, "failed", error.text)
        result = replace(result, seconds=round(self._clock.now() - begin, 3))
        await self._publisher.result(result)
        stage = "done" if result.outcome == "made" else result.outcome
        await self._publisher.progress(self._variant.recipe, stage, 1.0, result.reason)
        _log.info(
            "profiling finished",
            build=self._order.id,
            variant=self._variant.name,
            outcome=result.outcome,
            reason=result.reason,
            seconds=result.seconds,
        )
        return result

    async def _measured(self) -> BuildResult:
        variant = self._variant
        await self._publisher.progress(variant.recipe, "planned", 0.0)
        inputs = await self._fetch()
        if not is_reference(inputs.graph):  # what inspecting a graph leaves behind warms a measuring process up
            request = InspectRequest(str(inputs.graph), str(self._settings.warmup))
            limits = self._settings.limits()
            await run_child("infaas_variant_generator.inspection", request, Inspection, _ignore, limits)
        subject = Subject(
            recipe=variant.recipe,
            graph=inputs.graph,
            threads=variant.threads,
            batches=batch_sizes(variant.max_batch_size, variant.fixed_batch),
            fixed_batch=variant.fixed_batch,
            samples=self._settings.work_dir / "samples.npz",
            is_wanted=True,
        )
        measured = await measure(subject, self._order, inputs, self._settings, self._publisher, self._broker)
        if measured.profile is None:
            reason = measured.skipped or "nothing was measured"
            return BuildResult(self._order.id, WHOLE, None, "failed", reason)
        profile = replace(
            measured.profile,
            accuracy=variant.profile.accuracy if variant.profile is not None else None,
            samples=await asyncio.to_thread(self._repository.put_file, subject.samples),
        )
        done = replace(variant, profile=profile)
        return BuildResult(self._order.id, WHOLE, done, "made", "; ".join(measured.notes), accuracy=profile.accuracy)

    async def _fetch(self) -> Inputs:
        order = self._order

        def fetch(digest: Digest | None) -> str | None:
            return None if digest is None else str(self._repository.fetch(digest))

        graph = await asyncio.to_thread(self._repository.fetch, self._variant.artifact)
        evaluation = await asyncio.to_thread(fetch, order.evaluation)
        return Inputs(graph, evaluation, await asyncio.to_thread(fetch, order.calibration))


async def _ignore(event: Event) -> None:
    return None
