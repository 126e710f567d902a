"""Documents of the control plane: what `/v1/...` answers, what the CLI prints, and what `infaas.client` returns.

These are values for people and scripts. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infaas.domain.action import VariantUse
from infaas.domain.build import BuildProgress
from infaas.domain.query import Decision
from infaas.domain.task import Task
from infaas.domain.variant import Accuracy, LatencyPoint, Profile

__all__ = [
    "AutoscalerDocument",
    "BuildDocument",
    "Decision",
    "DecisionList",
    "FleetDocument",
    "FleetPoolDocument",
    "FleetStepDocument",
    "FleetStepList",
    "ForeignModelDocument",
    "ForeignModelList",
    "ModelDocument",
    "ModelList",
    "OutcomeDocument",
    "PartDocument",
    "ProcessDocument",
    "ProfileList",
    "ProfilingDocument",
    "ProfilingList",
    "RegistrationDocument",
    "ScalingStepDocument",
    "ScalingStepList",
    "SharedMemoryDocument",
    "SystemDocument",
    "TaskDocument",
    "TaskList",
    "VariantDocument",
    "VariantList",
    "VersionDocument",
    "VersionList",
    "WorkerAutoscalerDocument",
    "WorkerDocument",
    "WorkerInstanceDocument",
    "WorkerList",
]


@dataclass(frozen=True, slots=True)
class TaskDocument:
    task: Task
    models: tuple[str, ...] = ()
    ready_variants: int = 0
    best_accuracy: float | None = None
    default_floor: float | None = None


@dataclass(frozen=True, slots=True)
class OutcomeDocument:
    """What became of one recipe."""

    recipe: str
    outcome: str
    """`made`, `skipped` or `failed`."""
    reason: str
    variant: str | None = None
    max_abs_error: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class VersionDocument:
    model: str
    task: str
    version: int
    state: str
    """A `BuildState`."""
    reason: str
    is_current: bool
    digest: str
    """Of the file as it was uploaded."""
    created_at: str
    metric: str
    evaluation_rows: int | None = None
    declared_accuracy: float | None = None
    variants: tuple[str, ...] = ()
    outcomes: tuple[OutcomeDocument, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelDocument:
    name: str
    task: str
    state: str
    reason: str
    current: int | None
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[VersionDocument, ...] = ()
    serves: int | None = None
    """The version that queries get at this controller. It follows `current` as soon as the live state says so here."""


@dataclass(frozen=True, slots=True)
class BuildDocument:
    """Progress of one version's build; what `model status -w` and the progress bars follow."""

    model: str
    version: int
    state: str
    reason: str
    holder: str | None = None
    progress: tuple[BuildProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignModelDocument:
    """A model of a Triton server. What it takes and gives is known only of one that is loaded."""

    name: str
    version: str
    state: str
    """The server's word: READY, UNAVAILABLE, LOADING, UNLOADING."""
    reason: str
    platform: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    max_batch_size: int | None = None
    problems: tuple[str, ...] = ()
    """Why it cannot be attached."""


@dataclass(frozen=True, slots=True)
class ForeignModelList:
    models: tuple[ForeignModelDocument, ...]


@dataclass(frozen=True, slots=True)
class RegistrationDocument:
    """The 202 of `POST /v1/models`. `is_new` is false when the same file was registered before."""

    model: str
    version: int
    task: str
    state: str
    is_new: bool
    created_task: bool
    location: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VariantDocument:
    name: str
    task: str
    model: str
    version: int
    is_current: bool
    recipe: str
    runtime: str
    hardware: str
    precision: str
    threads: int
    max_batch_size: int
    state: str
    reason: str
    replicas: int
    """Instances that are READY now."""
    isolation: str = "thread"
    """Where its instances run: in their worker's process (`thread`), or each in one of its own (`process`)."""
    isolation_reason: str = ""
    accuracy: Accuracy | None = None
    p50_ms: float | None = None
    """At batch 1, alone on its cores."""
    p95_ms: float | None = None
    throughput_per_s: float | None = None
    cost_usd_per_1k: float | None = None
    cold_load_ms: float | None = None
    warm_load_ms: float | None = None
    resident_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    fit_error: float | None = None
    latency: tuple[LatencyPoint, ...] = ()
    samples: str | None = None
    is_on_frontier: bool = False
    dominated_by: str | None = None
    """A variant of the task that is at least as good in latency, accuracy and cost, and better in one."""


@dataclass(frozen=True, slots=True)
class ProfilingDocument:
    """A variant's new measurement: the 202 of `POST /v1/variants/{v}/profile`, and where it stands."""

    id: int
    variant: str
    state: str
    """A `ProfilingState`."""
    reason: str
    budget_s: float
    created_at: str
    updated_at: str
    location: str
    holder: str | None = None
    """The generator that works on it."""
    progress: BuildProgress | None = None


@dataclass(frozen=True, slots=True)
class WorkerInstanceDocument:
    id: str
    variant: str
    state: str
    reason: str
    running: int = 0
    staged: int = 0
    items_done: int = 0
    busy_ratio: float = 0.0
    isolation: str = "thread"


@dataclass(frozen=True, slots=True)
class SharedMemoryDocument:
    """How large tensors travel between this controller and a worker. Of several processes of one, whether and why is
    said by the one that answers; the numbers are of all of them."""

    is_used: bool
    reason: str = ""
    """Why the large ones go through the socket."""
    inputs: int = 0
    """Batches of which the inputs went through it."""
    input_bytes: int = 0
    outputs: int = 0
    output_bytes: int = 0
    without_room: int = 0
    """Batches, either way, that went through the socket because it was full."""


@dataclass(frozen=True, slots=True)
class WorkerDocument:
    id: str
    address: str
    state: str
    pool: str
    host: str
    cores: int
    memory_bytes: int
    price_usd_per_hour: float
    is_connected: bool
    report_age_s: float | None
    cpu_ratio: float | None = None
    memory_ratio: float | None = None
    stall_ratio: float | None = None
    instances: tuple[WorkerInstanceDocument, ...] = ()
    reason: str = ""
    """Why it is FAILED, or what ended its life before this one."""
    shared_memory: SharedMemoryDocument | None = None
    trouble: str = ""
    """Why the controller that was asked has no connection to it."""


@dataclass(frozen=True, slots=True)
class TaskList:
    tasks: tuple[TaskDocument, ...]


@dataclass(frozen=True, slots=True)
class ModelList:
    models: tuple[ModelDocument, ...]


@dataclass(frozen=True, slots=True)
class VersionList:
    versions: tuple[VersionDocument, ...]


@dataclass(frozen=True, slots=True)
class VariantList:
    variants: tuple[VariantDocument, ...]


@dataclass(frozen=True, slots=True)
class ProfilingList:
    profilings: tuple[ProfilingDocument, ...]


@dataclass(frozen=True, slots=True)
class ProfileList:
    """Newest first: the first one counts."""

    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class WorkerList:
    workers: tuple[WorkerDocument, ...]


@dataclass(frozen=True, slots=True)
class DecisionList:
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class WorkerAutoscalerDocument:
    """How busy variants are on one worker, by its own words of a moment ago."""

    worker: str
    is_on: bool
    """Whether it loads and unloads by that."""
    variants: tuple[VariantUse, ...] = ()


@dataclass(frozen=True, slots=True)
class AutoscalerDocument:
    workers: tuple[WorkerAutoscalerDocument, ...]


@dataclass(frozen=True, slots=True)
class ScalingStepDocument:
    """Something that an autoscaler did, or that was called for and held back (`hold`)."""

    id: str
    at: str
    """UTC, by the worker's clock."""
    action: str
    cause: str
    variant: str
    reason: str
    replicas: int
    """Of the variant on this worker, before."""
    worker: str
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class ScalingStepList:
    steps: tuple[ScalingStepDocument, ...]


@dataclass(frozen=True, slots=True)
class FleetPoolDocument:
    """Workers of one kind that the fleet keeps."""

    name: str
    hardware: str
    cores: int
    price_usd_per_hour: float
    """Of one worker."""
    min_workers: int
    max_workers: int
    ready: int
    starting: int
    draining: int
    ordered: int
    """That have not come yet."""
    lost: int
    """That are not heard of, or have failed."""
    own: int
    """Of those there are, how many the fleet has made and may take away."""


@dataclass(frozen=True, slots=True)
class FleetDocument:
    """What the VM autoscaler saw at its last look."""

    provider: str
    """`none`: there is no VM autoscaler, and nothing else here says anything."""
    is_dry_run: bool = False
    at: str | None = None
    controller: str | None = None
    """Who looked."""
    pools: tuple[FleetPoolDocument, ...] = ()
    demand_cores: float | None = None
    """Cores of work that come each second, served or not; None: not known yet."""
    waiting_core_s: float = 0.0
    """Work that waits, in core-seconds."""
    wanted_cores: float | None = None
    """So that the work leaves enough of them free; None: not known yet."""
    there_cores: int = 0
    spent_usd_per_hour: float = 0.0
    max_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class FleetStepDocument:
    """Something that was done about the fleet, or that was called for and held back (`hold`)."""

    id: str
    at: str
    action: str
    cause: str
    pool: str
    reason: str
    worker: str | None = None
    is_dry_run: bool = False
    controller: str = ""
    """Who led."""
    variant: str | None = None
    """That was loaded."""


@dataclass(frozen=True, slots=True)
class FleetStepList:
    steps: tuple[FleetStepDocument, ...]


@dataclass(frozen=True, slots=True)
class PartDocument:
    """Something a controller depends on."""

    state: str
    """`up`, `read-only` (it answers, and takes no changes) or `lost`."""
    reason: str = ""
    """Why it is not up."""
    age_s: float | None = None
    """Since it was last heard of, where that is known."""


@dataclass(frozen=True, slots=True)
class ProcessDocument:
    """One of the processes that a controller consists of."""

    number: int
    controller: str
    """Its own name, which its decisions carry."""
    pid: int
    state: str
    """`starting`, `serving` or `draining`."""
    is_ready: bool
    is_leader: bool
    in_flight: int
    restarts: int
    """How often its place was filled again."""


@dataclass(frozen=True, slots=True)
class SystemDocument:
    """What one controller, all its processes together, knows of the parts it depends on."""

    controller: str
    is_ready: bool
    is_leader: bool
    store: PartDocument
    catalogue: PartDocument
    journal_waiting: int
    """Decisions that are not in the catalogue yet."""
    journal_dropped: int
    """Decisions that were lost to the journal since the controller started."""
    workers: int
    workers_connected: int
    processes: tuple[ProcessDocument, ...] = ()
    """That the controller consists of, by number; the one that answers among them."""
