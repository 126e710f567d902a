"""What the generator asks of its child processes and what they answer: plain values that travel as JSON.

They stand apart from the children's code, because that code loads numpy and ONNX Runtime and the generator does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from infaas.domain.tensor import TensorSpec
from infaas.domain.variant import Accuracy, Profile
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.plan import Transform


@dataclass(frozen=True, slots=True)
class InspectRequest:
    graph: str
    warmup_graph: str
    """Where to write the tiny graph that measuring processes run first."""
    hardware: HardwareFacts | None = None
    """What recipes are planned for; None: they are not asked for."""


@dataclass(frozen=True, slots=True)
class Inspection:
    facts: GraphFacts
    transforms: tuple[Transform, ...]


@dataclass(frozen=True, slots=True)
class RebatchRequest:
    """Make a graph that insists on one batch size take any."""

    source: str
    target: str
    inputs: tuple[TensorSpec, ...]
    evaluation: str | None
    calibration: str | None
    fixed_batch: int
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class Rebatched:
    """`is_dynamic`: the target takes any batch and answers like the source. `reason` says what was done, or why it
    is not so."""

    is_dynamic: bool
    reason: str


@dataclass(frozen=True, slots=True)
class MakeRequest:
    entry: str
    source: str
    target: str
    reference: str
    """Where the original's answers are kept between the recipes of one build."""
    inputs: tuple[TensorSpec, ...]
    evaluation: str | None
    calibration: str | None
    metric: str
    tolerance: float
    fixed_batch: int | None
    max_batch_size: int
    threads: int
    hardware: HardwareFacts


@dataclass(frozen=True, slots=True)
class Made:
    """`outcome` is `made`, `skipped` or `failed`; `reason` says why it was not made."""

    outcome: str
    reason: str
    max_abs_error: float | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    graph: str
    threads: int
    batches: tuple[int, ...]
    fixed_batch: int | None
    budget_s: float
    inputs: tuple[TensorSpec, ...]
    evaluation: str | None
    calibration: str | None
    warmup_graph: str | None
    """A tiny graph run first, so that what ONNX Runtime sets up once per process is not laid to this variant."""
    samples: str
    """Where to write the raw samples (npz)."""
    price_usd_per_core_hour: float
    hardware_memory_bytes: int
    host: str
    is_wanted: bool = False
    """Measured even where its threads gain nothing."""
    best_reference_s: float | None = None
    """What `pace.Reference` takes on so many cores of this host when nobody disturbs it, as far as that is known."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`skipped` says why the variant is not worth having; else there is a profile. `notes` are for people."""

    skipped: str | None
    profile: Profile | None
    max_batch_size: int
    notes: tuple[str, ...] = ()
    seen_reference_s: float | None = None
    """The least that `pace.Reference` took meanwhile."""
