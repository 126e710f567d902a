"""Which variants to try for a graph on some hardware, and why others are not tried.

Pure: everything it looks at is an argument. What only a measurement can tell (whether a run is long enough to be split
over threads, whether the largest batch takes absurdly long) is decided here too, from the measured figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas_variant_generator.facts import GraphFacts, HardwareFacts

MIN_SPLIT_RUN_S = 100e-6
"""A run that is over sooner on one thread gains nothing by more: handing its parts out takes as long as the parts."""
MAX_BATCH_RUN_S = 2.0
"""A batch that runs longer than this helps nobody: its first query has waited too long."""
LONG_BATCH_RUN_S = 0.25
MIN_BATCH_GAIN = 1.10
"""A batch that runs long must at least serve each item this much faster than a small one does."""
MAX_MEMORY_SHARE = 0.5
"""Of the hardware's memory, for one instance at its largest batch."""


@dataclass(frozen=True, slots=True)
class Transform:
    """What planning must know of a recipe family: `Recipe` in `transform.base` without its effects."""

    entry: str
    """Name of the entry point in the group `infaas.recipes`."""
    prefix: str
    runtime: Runtime
    hardware: Hardware
    precision: Precision
    not_applicable: str | None = None
    """Why it does not apply to this graph; None when it does."""


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """One recipe: a transform of the graph, a number of threads, and the batch sizes to measure."""

    name: str
    """`ort-fp32-t1`: what the variant's name ends with."""
    transform: Transform
    threads: int
    batches: tuple[int, ...]
    skip: str | None
    """Why it is not tried at all; None: try it."""
    fixed_batch: int | None = None
    """The only batch that its graph takes."""


def plan_variants(
    facts: GraphFacts,
    hardware: HardwareFacts,
    transforms: Sequence[Transform],
    *,
    max_batch_size: int,
    fixed_batch: int | None,
) -> tuple[PlannedVariant, ...]:
    """Every recipe for the graph; the ones that do not apply once, with their reason, whatever the number of threads.

    All single-threaded ones come first, so that a model can be served as early as possible.
    """
    batches = batch_sizes(max_batch_size, fixed_batch)
    ordered = sorted(transforms, key=lambda t: (t.precision is not Precision.FP32, t.prefix))
    skips = {transform.prefix: _why_skip(facts, hardware, transform) for transform in ordered}
    return tuple(
        PlannedVariant(
            name=f"{transform.prefix}-t{threads}",
            transform=transform,
            threads=threads,
            batches=batches,
            skip=skips[transform.prefix],
            fixed_batch=fixed_batch,
        )
        for threads in thread_counts(hardware.cores)
        for transform in ordered
        if threads == 1 or skips[transform.prefix] is None
    )


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4 ... up to the cores."""
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return tuple(counts)


def batch_sizes(max_batch_size: int, fixed_batch: int | None) -> tuple[int, ...]:
    """1, 2, 4 ... and the limit itself; only the fixed batch for a graph that takes no other."""
    if fixed_batch is not None:
        return (fixed_batch,)
    sizes = [1]
    while sizes[-1] * 2 <= max_batch_size:
        sizes.append(sizes[-1] * 2)
    if sizes[-1] != max_batch_size:
        sizes.append(max_batch_size)
    return tuple(sizes)


def why_not_split(run_s: float, batch: int, threads: int) -> str | None:
    """From the typical run of the largest batch on one thread: why more threads are not tried; None: they are.

    How much they gain is left to the measured profiles: a variant that costs more and gains nothing is dominated.
    """
    if run_s >= MIN_SPLIT_RUN_S:
        return None
    return (
        f"too short to be split over {threads} threads: a batch of {batch} takes {run_s * 1e6:.3g} µs on one, "
        f"{MIN_SPLIT_RUN_S * 1e6:g} µs would do"
    )


def batch_limit_reason(
    batch: int, run_s: float, best_item_s: float | None, memory_bytes: int, hardware_memory: int
) -> str | None:
    """Why a batch of this size is too much; None when it is fine. `best_item_s` is the least time per item of the
    smaller sizes; None: there are none."""
    if run_s > MAX_BATCH_RUN_S:
        return f"one run of {batch} items takes {run_s:.2f} s, over {MAX_BATCH_RUN_S:g} s"
    if best_item_s is not None and run_s > LONG_BATCH_RUN_S and best_item_s * batch / run_s < MIN_BATCH_GAIN:
        return (
            f"one run of {batch} items takes {run_s:.2f} s, {run_s / batch * 1e3:.1f} ms each, "
            f"where smaller batches take {best_item_s * 1e3:.1f} ms"
        )
    allowed = int(hardware_memory * MAX_MEMORY_SHARE)
    if memory_bytes > allowed:
        return (
            f"{batch} items take {memory_bytes / 2**20:.0f} MiB, over {MAX_MEMORY_SHARE:.0%} of the "
            f"{hardware_memory / 2**20:.0f} MiB there are"
        )
    return None


def _why_skip(facts: GraphFacts, hardware: HardwareFacts, transform: Transform) -> str | None:
    if transform.hardware is not hardware.kind:
        return f"needs {transform.hardware.value}; this is {hardware.kind.value}"
    if transform.not_applicable is not None:
        return transform.not_applicable
    if facts.file_bytes > hardware.memory_bytes * MAX_MEMORY_SHARE:
        return (
            f"the graph's {facts.file_bytes / 2**20:.0f} MiB are over {MAX_MEMORY_SHARE:.0%} of the "
            f"{hardware.memory_bytes / 2**20:.0f} MiB there are"
        )
    return None
