"""What the live store must say, given the catalogue, and the writes that make it so.

Pure and level-triggered: whatever was lost or half done, one comparison finds all that is missing, and doing it twice
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infaas.catalog.records import ModelRow, ProfilingRow, VersionRow
from infaas.domain.build import BuildOrder, profiling_build
from infaas.domain.ids import BuildId, TaskName, VersionId
from infaas.domain.lifecycle import BuildState
from infaas.domain.task import Model, ModelState, Task
from infaas.domain.variant import Variant
from infaas.rpc.codec import encode
from infaas.settings import Settings
from infaas.store.base import Kind, Record
from infaas_controller.register.options import overlaid

OPEN = (BuildState.RECEIVED, BuildState.BUILDING)
PUBLISHED = (Kind.TASK, Kind.VARIANT, Kind.MODEL, Kind.BUILD, Kind.CATALOGUE)
"""In the order of writing: a model never names a version whose variants are not there."""
SOURCE = (Kind.CATALOGUE, "source")
"""Which catalogue the store was last made to follow."""
ANSWERS = (Kind.PROGRESS, Kind.RESULT)
"""What generators leave; it goes when its build is over."""
Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Registered:
    """All of the catalogue that matters to the store, read at one revision."""

    tasks: Sequence[Task]
    models: Sequence[ModelRow]
    """Without the retired ones."""
    versions: Sequence[VersionRow]
    variants: Sequence[Variant]
    """Of versions that are READY."""
    done: Mapping[VersionId, tuple[str, ...]]
    """Recipes with a known outcome, of open builds."""
    profilings: Sequence[ProfilingRow] = ()
    """Those that are open."""


@dataclass(frozen=True, slots=True)
class Write:
    """Put `value`, or delete when it is None."""

    kind: Kind
    key: str
    value: bytes | None


def refusal(catalogue: str, registered: Registered, found: Sequence[Record]) -> str | None:
    """Why the store is not made to follow a catalogue; None: it is.

    A database that is not where it was is made anew and says that there is nothing. What another catalogue filled the
    store with is not given up for that.
    """
    source = next((record.value.decode() for record in found if (record.kind, record.key) == SOURCE), catalogue)
    lost = sum(record.kind is Kind.MODEL for record in found)
    if source == catalogue or registered.models or not lost:
        return None
    return (
        f"this catalogue ({catalogue}) holds no model, and the store has {lost} of another one ({source}), which serve "
        "on: mount or restore that database and start the controllers again; if this one is meant, register a model, "
        "and the others go"
    )


def effective(task: Task, settings: Settings) -> Task:
    """The task with the configuration's defaults over its own."""
    configured = settings.tasks.get(task.name)
    return replace(task, defaults=overlaid(task, configured.defaults if configured else None))


def desired_records(registered: Registered, settings: Settings) -> dict[Key, bytes]:
    tasks = {task.name: effective(task, settings) for task in registered.tasks}
    desired: dict[Key, bytes] = {(Kind.TASK, name): encode(task) for name, task in tasks.items()}
    desired |= {(Kind.VARIANT, variant.name): encode(variant) for variant in registered.variants}
    models = {row.name: row for row in registered.models}
    for row in registered.models:
        own = [version for version in registered.versions if version.model == row.name]
        desired[Kind.MODEL, row.name] = encode(model_of(row, own))
    for version in registered.versions:
        if version.state in OPEN and version.model in models:
            task = tasks[models[version.model].task]
            order = build_order(version, task, registered.done.get(version.id, ()), settings)
            desired[Kind.BUILD, version.id] = encode(order)
    for order in _profiling_orders(registered, tasks, settings):
        desired[Kind.BUILD, order.id] = encode(order)
    return desired


def _profiling_orders(
    registered: Registered, tasks: Mapping[TaskName, Task], settings: Settings
) -> Iterator[BuildOrder]:
    """As the version's build was, but for one variant that is there already."""
    variants = {variant.name: variant for variant in registered.variants}
    versions = {(version.model, version.number): version for version in registered.versions}
    for row in registered.profilings:
        variant = variants.get(row.variant)
        if variant is not None:
            version = versions[variant.model, variant.version]
            order = build_order(version, tasks[variant.task], (), settings)
            yield replace(order, id=profiling_build(row.id), profile_budget_s=row.budget_s, remeasure=variant)


def plan_writes(desired: Mapping[Key, bytes], found: Sequence[Record]) -> list[Write]:
    """What is missing or different is put, what is too much is deleted. A build that is there stays as it is: the
    generator that works on it owns its details."""
    there = {(record.kind, record.key): record.value for record in found}
    writes = []
    for kind in PUBLISHED:
        for (of_kind, key), value in desired.items():
            is_wrong = there.get((kind, key)) != value if kind is not Kind.BUILD else (kind, key) not in there
            if of_kind is kind and is_wrong:
                writes.append(Write(kind, key, value))
    for record in found:
        if record.kind in ANSWERS:
            is_over = (Kind.BUILD, record.key.rpartition("/")[0]) not in desired
        else:
            is_over = record.kind in PUBLISHED and (record.kind, record.key) not in desired
        if is_over:
            writes.append(Write(record.kind, record.key, None))
    return writes


def model_of(row: ModelRow, versions: Sequence[VersionRow]) -> Model:
    """A model's record, with Triton's word for its state and what it is waiting for."""
    state, reason = _state_of(row, versions)
    return Model(row.name, row.task, row.current, row.labels, state, reason)


def _state_of(row: ModelRow, versions: Sequence[VersionRow]) -> tuple[ModelState, str]:
    if row.retired_at is not None:
        return ModelState.UNAVAILABLE, "unregistered"
    warming = row.reason or f"version {row.wanted} is being warmed"
    if row.current is not None:
        return ModelState.READY, "" if row.wanted in (None, row.current) else warming
    if row.wanted is not None:
        return ModelState.LOADING, warming
    building = [version.number for version in versions if version.state in OPEN]
    if building:
        return ModelState.LOADING, f"version {max(building)} is being built"
    failed = [version for version in versions if version.state is BuildState.FAILED]
    if failed:
        return ModelState.UNAVAILABLE, f"version {failed[-1].number} failed: {failed[-1].reason}"
    return ModelState.UNAVAILABLE, "no version"


def build_order(version: VersionRow, task: Task, done: tuple[str, ...], settings: Settings) -> BuildOrder:
    return BuildOrder(
        id=BuildId(version.id),
        version_id=version.id,
        task=TaskName(task.name),
        model=version.model,
        version=version.number,
        task_spec=task,
        artifact=version.artifact,
        original=version.original,
        evaluation=version.evaluation,
        calibration=version.calibration,
        metric=version.metric,
        declared_accuracy=version.declared_accuracy,
        fixed_batch=version.fixed_batch,
        max_batch_size=settings.generator.max_batch_size,
        profile_budget_s=settings.generator.profile_budget_s,
        done=done,
    )
