"""The build of an attached model: one variant, made of nothing but a reference, measured over the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infaas.domain.build import BuildOrder
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Precision, Runtime
from infaas.triton.reference import Reference, is_reference, read_reference
from infaas_variant_generator.children import Event, run_child
from infaas_variant_generator.plan import PlannedVariant, Transform, batch_sizes
from infaas_variant_generator.publish import Publisher
from infaas_variant_generator.requests import Measured

if TYPE_CHECKING:
    from infaas_variant_generator.measuring import BuildSettings, Inputs, Subject

RECIPE = "triton"


@dataclass(frozen=True, slots=True)
class AttachedRequest:
    """What the measuring process is asked."""

    reference: str
    """Path of the reference."""
    url: str | None
    """Of the server to measure; None: the reference's."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    evaluation: str | None
    calibration: str | None
    metric: str
    budget_s: float
    samples: str
    price_usd_per_core_hour: float
    host: str
    is_private: bool = False
    """Whether nobody else uses the server at `url`."""


def plan_attached(path: Path) -> tuple[PlannedVariant, ...]:
    """Nothing when the file is no reference. Raises InvalidError for one that this version does not read."""
    if not is_reference(path):
        return ()
    reference = read_reference(path)
    transform = Transform("", RECIPE, Runtime.TRITON, reference.hardware, precision(reference))
    batches = batch_sizes(reference.max_batch_size, reference.fixed_batch)
    return (PlannedVariant(RECIPE, transform, 0, batches, None, reference.fixed_batch),)


def precision(reference: Reference) -> Precision:
    """All that can be said from outside: a model that takes halves is one of halves."""
    is_half = any(one.model_type is Datatype.FP16 for one in (*reference.inputs, *reference.outputs))
    return Precision.FP16 if is_half else Precision.FP32


async def measure_attached(
    subject: Subject, order: BuildOrder, inputs: Inputs, settings: BuildSettings, publisher: Publisher
) -> Measured:
    """Without cores of the workers': the model runs elsewhere. The profile holds the accuracy too.

    Raises ChildFailedError, LeaseLostError.
    """

    async def on_event(event: Event) -> None:
        if event["event"] == "stage":
            await publisher.progress(subject.recipe, event["stage"], event["fraction"])

    await publisher.progress(subject.recipe, "profiling", 0.1)
    request = AttachedRequest(
        reference=str(subject.graph),
        url=settings.triton_url,
        inputs=order.task_spec.inputs,
        outputs=order.task_spec.outputs,
        evaluation=inputs.evaluation,
        calibration=inputs.calibration,
        metric=order.metric,
        budget_s=order.profile_budget_s,
        samples=str(subject.samples),
        price_usd_per_core_hour=settings.price_usd_per_core_hour,
        host=settings.host,
        is_private=settings.is_triton_private,
    )
    return await run_child("infaas_variant_generator.attached", request, Measured, on_event, settings.limits())
