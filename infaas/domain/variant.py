"""A variant is one way to run a model version; its profile is what measurement says about it.

Everything selection compares is here: latency as a function of the batch, accuracy with its interval, cost, memory and
load time. A variant without a profile cannot be promised to anyone and is therefore never selected.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

from infaas.domain.ids import Digest, InstanceId, ModelName, TaskName, VariantName
from infaas.domain.tensor import TensorSpec


class Runtime(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TRITON = "triton"

    @property
    def is_elsewhere(self) -> bool:
        """Whether a server loads and runs its models: nothing that they do ends a process of ours."""
        return self is Runtime.TRITON


class Hardware(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Isolation(StrEnum):
    """Where an instance runs: in its worker's process, or in one of its own, whose end harms nothing else."""

    THREAD = "thread"
    PROCESS = "process"


PROCESS_MEMORY_BYTES = 64 * 2**20
"""What a process of its own takes beside the model: an interpreter, numpy and a runtime."""
PROCESS_START_S = 0.5
"""What starting it adds to loading, until more is known."""


class AccuracySource(StrEnum):
    MEASURED = "measured"
    DECLARED = "declared"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A score in [0, 1], higher is better, with a 95 % interval. `raw` is the metric in its own unit (mae, rmse)."""

    metric: str
    value: float
    low: float
    high: float
    rows: int
    source: AccuracySource = AccuracySource.MEASURED
    raw: float | None = None


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """What was measured at one batch size, in seconds for the whole batch. Mean and median are of the best rounds, the
    rest of all that count."""

    batch: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    samples: int


AS_FAST = 0.97
"""What measured curves waver by."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured on `threads` pinned threads of one machine. Raw samples lie in the repository under `samples`."""

    latency: tuple[LatencyPoint, ...]
    """Ascending by batch; never empty."""
    fit_base_s: float
    fit_per_item_s: float
    fit_error: float
    """Fitted p50 = base + per_item * batch; the error is the largest relative deviation from a measured point."""
    cold_load_s: float
    warm_load_s: float
    peak_memory_bytes: int
    resident_memory_bytes: int
    throughput_per_s: float
    """Items per second at `best_batch`, one batch after another."""
    best_batch: int
    cost_usd_per_1k: float
    """USD for 1,000 queries of one item, served one at a time, at the pool's price."""
    accuracy: Accuracy | None
    samples: Digest | None = None
    budget_s: float = 0.0
    stalled_rounds: int = 0
    """Rounds measured again because the host stopped the process in the middle of them, or was slow."""
    measured_at: str = ""
    host: str = ""

    def latency_s(self, batch: int, quantile: str = "p95_s") -> float:
        """Seconds for one batch: measured where measured, linear between points, the fit's slope beyond the last."""
        points = self.latency
        index = bisect_left(points, batch, key=_batch_of)
        if index < len(points) and points[index].batch == batch:
            return float(getattr(points[index], quantile))
        if index == 0:
            return float(getattr(points[0], quantile))
        if index == len(points):
            last = points[-1]
            per_item = self.fit_per_item_s if len(points) > 1 else float(getattr(last, quantile)) / last.batch
            return float(getattr(last, quantile)) + per_item * (batch - last.batch)
        low, high = points[index - 1], points[index]
        share = (batch - low.batch) / (high.batch - low.batch)
        a, b = float(getattr(low, quantile)), float(getattr(high, quantile))
        return a + (b - a) * share

    def portion(self, most: int) -> int:
        """The most items that one call of a model should hold, `most` at the outside: larger calls were measured to do
        clearly fewer items in a second, as convolutions do whose tensors leave the processor's caches."""
        measured = [point for point in self.latency if point.batch <= most and point.p50_s > 0]
        best = max((point.batch / point.p50_s for point in measured), default=0.0)
        fast = [point.batch for point in measured if point.batch / point.p50_s >= AS_FAST * best]
        return most if not measured or fast[-1] == measured[-1].batch else fast[-1]


def _batch_of(point: LatencyPoint) -> int:
    return point.batch


class VariantState(StrEnum):
    """READY may be selected; DISABLED was taken out by a user; RETIRED belongs to a version that serves no more."""

    READY = "READY"
    DISABLED = "DISABLED"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True)
class Variant:
    """A published variant: all a worker needs to run it and all a controller needs to choose it."""

    name: VariantName
    task: TaskName
    model: ModelName
    version: int
    recipe: str
    runtime: Runtime
    hardware: Hardware
    precision: Precision
    threads: int
    max_batch_size: int
    """The most items one run may hold (SURFACE rule 8: items, not requests)."""
    fixed_batch: int | None
    """The only batch the graph takes, when it is not dynamic."""
    artifact: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile | None = None
    state: VariantState = VariantState.READY
    reason: str = ""
    isolation: Isolation = Isolation.THREAD
    isolation_reason: str = ""
    """Why it is isolated, when nobody asked for it: what it did in a worker's process."""
    pardoned: tuple[InstanceId, ...] = ()
    """Instances that were known to have died when somebody said where it is to run: they say nothing against that."""

    def portion(self, items: int) -> int:
        """How many of so many items one call of its runtime is given: all, or the most that it is fastest with, where
        calls of so many one after the other take less. What is run elsewhere is cut there or not at all."""
        if self.fixed_batch is not None:
            return self.fixed_batch
        if items <= 1 or self.profile is None or self.runtime is not Runtime.ONNXRUNTIME:
            return items
        most = self.profile.portion(self.max_batch_size)
        if items <= most:
            return items
        return most if self._cut_s(items, most, "mean_s") < self.profile.latency_s(items, "mean_s") else items

    def run_s(self, items: int, quantile: str = "p95_s") -> float:
        """Seconds for so many items run together, in the calls that they are run in. Infinite without a profile."""
        if self.profile is None:
            return float("inf")
        portion = self.portion(items)
        if self.fixed_batch is not None or portion >= items:
            return self.profile.latency_s(items, quantile)
        return self._cut_s(items, portion, quantile)

    def _cut_s(self, items: int, portion: int, quantile: str) -> float:
        """One of the calls may take as long as the quantile says, hardly all."""
        assert self.profile is not None
        before, rest = divmod(items - 1, portion)
        usual = "p50_s" if quantile == "p50_s" else "mean_s"
        return before * self.profile.latency_s(portion, usual) + self.profile.latency_s(rest + 1, quantile)

    @property
    def memory_bytes(self) -> int:
        """What a worker sets aside for one instance; 0 while that is not measured."""
        own = self.profile.resident_memory_bytes if self.profile else 0
        return own + PROCESS_MEMORY_BYTES if own and self.isolation is Isolation.PROCESS else own
