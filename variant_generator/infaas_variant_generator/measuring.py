"""Measures a graph in a child process, on cores that the workers of this machine lend slice by slice.

A build does so once per recipe, a profiling for one variant that exists; both show the same stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from infaas.domain.build import BuildOrder
from infaas.triton.reference import is_reference
from infaas_variant_generator.attaching import measure_attached
from infaas_variant_generator.children import ChildLimits, Event, run_child
from infaas_variant_generator.cores import CoreBroker
from infaas_variant_generator.facts import HardwareFacts
from infaas_variant_generator.pace import HostPace
from infaas_variant_generator.publish import Publisher
from infaas_variant_generator.requests import Measured, MeasureRequest

CHILD_CPU_S = 3600
MEASURE_CPU_FACTOR = 20
"""Loading, warming and comparing come on top of the budget; a graph may run on several threads."""
_BEGIN = 0.3
"""How much of a recipe's work is done when its measuring begins, for the bar."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    hardware: HardwareFacts
    host: str
    price_usd_per_core_hour: float
    accuracy_tolerance: float
    child_memory_bytes: int
    """Of address space; a bound against runaways, not what variants are planned for."""
    work_dir: Path
    """Empty, for this build alone."""
    pace: HostPace
    triton_url: str | None = None
    """Where attached models are measured; None: on the server that each was attached from."""
    is_triton_private: bool = False
    """Whether nothing but this generator uses the server at `triton_url`."""

    @property
    def warmup(self) -> Path:
        """The tiny graph that measuring processes run first; inspecting a graph leaves it here."""
        return self.work_dir / "warmup.onnx"

    def limits(self) -> ChildLimits:
        return ChildLimits(cpu_s=CHILD_CPU_S, memory_bytes=self.child_memory_bytes)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Local files of the order's artifacts."""

    graph: Path
    evaluation: str | None
    calibration: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and where the raw samples go."""

    recipe: str
    graph: Path
    threads: int
    batches: tuple[int, ...]
    fixed_batch: int | None
    samples: Path
    is_wanted: bool = False
    """Measured even where its threads gain nothing: it is in service already."""


async def measure(
    subject: Subject,
    order: BuildOrder,
    inputs: Inputs,
    settings: BuildSettings,
    publisher: Publisher,
    broker: CoreBroker,
) -> Measured:
    """Cores are taken and given back as the child asks. Raises ChildFailedError, LeaseLostError."""
    if is_reference(subject.graph):
        return await measure_attached(subject, order, inputs, settings, publisher)

    async def on_event(event: Event) -> Event | None:
        if event["event"] == "progress":
            fraction = _BEGIN + (1 - _BEGIN) * event["fraction"]
            await publisher.progress(subject.recipe, "profiling", fraction)
        elif event["event"] == "release":
            await broker.give()
        elif event["event"] == "cores":
            loan = await broker.take(event["count"], event["max_s"])
            return {"cores": loan.cores, "note": loan.note}
        return None

    await publisher.progress(subject.recipe, "waiting-for-cores", _BEGIN)
    request = MeasureRequest(
        graph=str(subject.graph),
        threads=subject.threads,
        batches=subject.batches,
        fixed_batch=subject.fixed_batch,
        budget_s=order.profile_budget_s,
        inputs=order.task_spec.inputs,
        evaluation=inputs.evaluation,
        calibration=inputs.calibration,
        warmup_graph=str(settings.warmup),
        samples=str(subject.samples),
        price_usd_per_core_hour=settings.price_usd_per_core_hour,
        hardware_memory_bytes=settings.hardware.memory_bytes,
        host=settings.host,
        is_wanted=subject.is_wanted,
        best_reference_s=settings.pace.best_s(subject.threads),
    )
    cpu_s = 600 + int(order.profile_budget_s * MEASURE_CPU_FACTOR * subject.threads)
    limits = replace(settings.limits(), cpu_s=cpu_s)
    try:
        measured = await run_child("infaas_variant_generator.measure", request, Measured, on_event, limits)
        if measured.seen_reference_s is not None:
            settings.pace.note(subject.threads, measured.seen_reference_s)
        return measured
    finally:
        await broker.give()
