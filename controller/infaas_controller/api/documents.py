"""What the protocol says about registered names: metadata, configuration, state, and which variant a load loads.

A name may be a task, a model or a variant; every document exists at all three levels. Pure functions over the view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infaas import __version__
from infaas.domain.cluster import ClusterView, InstanceRecord
from infaas.domain.ids import ModelName, TaskName, VariantName
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import DEFAULT_FLOOR_MARGIN, Level
from infaas.domain.task import Model, ModelState, Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import AccuracySource, Hardware, Runtime, Variant, VariantState
from infaas.errors import NotFoundError
from infaas_controller.api.intake import unknown_name

SERVER_NAME = "infaas"
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
PLATFORM = "infaas"
_PLATFORMS = {Runtime.ONNXRUNTIME: "onnxruntime_onnx", Runtime.OPENVINO: "openvino", Runtime.TRITON: "triton"}


@dataclass(frozen=True, slots=True)
class Handle:
    """A name resolved: what it admits now."""

    name: str
    level: Level
    task: Task
    versions: tuple[int, ...]
    """That a caller may ask for, ascending."""
    variants: tuple[Variant, ...]
    """Published variants of the version (or versions) that would serve, disabled ones included."""
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: Model | None = None


class Index:
    """The view by model and version, and instances by variant. Built once per view, on the first question."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.by_model: dict[ModelName, dict[int, list[Variant]]] = {}
        for variant in view.variants.values():
            self.by_model.setdefault(variant.model, {}).setdefault(variant.version, []).append(variant)
        self.models_of: dict[TaskName, list[Model]] = {}
        for model in view.models.values():
            self.models_of.setdefault(model.task, []).append(model)
        self.instances: dict[VariantName, list[InstanceRecord]] = {}
        self.has_worker = False
        for worker in view.workers.values():
            if worker.state is not WorkerState.READY:
                continue
            self.has_worker = True
            for instance in worker.instances.values():
                self.instances.setdefault(instance.variant, []).append(instance)

    def names(self) -> list[str]:
        """Everything that can be asked for: tasks, then models, then variants."""
        return [*sorted(self.view.tasks), *sorted(self.view.models), *sorted(self.view.variants)]


def server_metadata() -> dict[str, Any]:
    return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def resolve(index: Index, name: str, version: int | None = None) -> Handle:
    """Raises NotFoundError for a name or version that nothing is registered under."""
    view = index.view
    task = view.tasks.get(TaskName(name))
    if task is not None:
        return _task_handle(index, task, version)
    model = view.models.get(ModelName(name))
    if model is not None and model.task in view.tasks:
        return _model_handle(index, model, version)
    variant = view.variants.get(VariantName(name))
    if variant is not None and variant.task in view.tasks:
        if version not in (None, variant.version):
            raise NotFoundError(f"variant {name!r} is of version {variant.version}; it has no version {version}")
        platform = _PLATFORMS[variant.runtime]
        owner = view.tasks[variant.task]
        inputs, outputs = variant.inputs, variant.outputs
        return Handle(name, Level.VARIANT, owner, (variant.version,), (variant,), platform, inputs, outputs)
    raise unknown_name(view, name)


def _task_handle(index: Index, task: Task, version: int | None) -> Handle:
    models = index.models_of.get(task.name, [])
    versions = tuple(sorted({model.current for model in models if model.current is not None}))
    if version is not None and version not in versions:
        raise NotFoundError(f"task {task.name!r} has no model that serves version {version}; {_listed(versions)}")
    variants = tuple(
        variant
        for model in models
        if model.current is not None and version in (None, model.current)
        for variant in index.by_model.get(model.name, {}).get(model.current, [])
    )
    return Handle(task.name, Level.TASK, task, versions, variants, PLATFORM, task.inputs, task.outputs)


def _model_handle(index: Index, model: Model, version: int | None) -> Handle:
    task = index.view.tasks[model.task]
    by_version = index.by_model.get(model.name, {})
    ready = {number for number, made in by_version.items() if any(v.state is VariantState.READY for v in made)}
    versions = tuple(sorted(ready))
    if version is not None and version not in versions:
        raise NotFoundError(f"model {model.name!r} has no ready version {version}; {_listed(versions)}")
    chosen = version if version is not None else model.current
    variants = tuple(by_version.get(chosen, [])) if chosen is not None else ()
    return Handle(model.name, Level.MODEL, task, versions, variants, PLATFORM, task.inputs, task.outputs, model)


def _listed(versions: tuple[int, ...]) -> str:
    return f"there are {', '.join(map(str, versions))}" if versions else "none is ready"


def state_of(index: Index, handle: Handle) -> tuple[ModelState, str]:
    """READY means that an instance is: it warmed up with a real inference, and is probed while idle (rule 9)."""
    usable = [variant for variant in handle.variants if variant.state is VariantState.READY]
    states = {i.state for variant in usable for i in index.instances.get(variant.name, ())}
    if InstanceState.READY in states:
        return ModelState.READY, ""
    if InstanceState.LOADING in states:
        return ModelState.LOADING, "an instance is loading"
    if InstanceState.DRAINING in states:
        return ModelState.UNLOADING, "its last instance finishes its work"
    model = handle.model
    if not usable:
        if model is not None and model.state is not ModelState.READY:
            return model.state, model.reason or "no version is ready"
        disabled = next((variant for variant in handle.variants), None)
        if disabled is not None:
            return ModelState.UNAVAILABLE, disabled.reason or f"variant {disabled.name} is {disabled.state.value}"
        return ModelState.UNAVAILABLE, "no variant is published"
    if not index.has_worker:
        return ModelState.UNAVAILABLE, "no worker is ready"
    failed = [i for variant in usable for i in index.instances.get(variant.name, ()) if i.state is InstanceState.FAILED]
    if failed:
        return ModelState.UNAVAILABLE, f"loading failed: {failed[-1].reason or 'no reason given'}"
    return ModelState.UNAVAILABLE, "not loaded; a load request or a query loads it"


def variant_to_load(handle: Handle) -> Variant:
    """The variant that a query without requirements would most likely get: the cheapest at or above the default floor.

    Raises NotFoundError when none of the handle's variants could be selected.
    """
    usable = [v for v in handle.variants if v.state is VariantState.READY and v.profile is not None]
    if not usable:
        raise NotFoundError(f"failed to load {handle.name!r}: it has no variant that can be served")
    floor = handle.task.defaults.slo_accuracy_min
    if floor is None:
        floor = default_floor(handle)
    good = [variant for variant in usable if _accuracy(variant) >= floor] or usable
    return min(good, key=_by_cost)


def default_floor(handle: Handle) -> float:
    """Of a query that states none: the best measured accuracy that the handle admits, less the margin."""
    measured = [
        variant.profile.accuracy.value
        for variant in handle.variants
        if variant.profile and variant.profile.accuracy and variant.profile.accuracy.source is AccuracySource.MEASURED
    ]
    return max(measured, default=DEFAULT_FLOOR_MARGIN) - DEFAULT_FLOOR_MARGIN


def _accuracy(variant: Variant) -> float:
    return variant.profile.accuracy.value if variant.profile and variant.profile.accuracy else 0.0


def _by_cost(variant: Variant) -> tuple[float, float, str]:
    if variant.profile is None:
        return float("inf"), float("inf"), variant.name
    return variant.profile.cost_usd_per_1k, variant.profile.latency_s(1), variant.name


def metadata(handle: Handle) -> dict[str, Any]:
    return {
        "name": handle.name,
        "versions": [str(version) for version in handle.versions],
        "platform": handle.platform,
        "inputs": [_tensor_metadata(spec) for spec in handle.inputs],
        "outputs": [_tensor_metadata(spec) for spec in handle.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)}


def config(handle: Handle) -> dict[str, Any]:
    """A model's configuration in Triton's fields; dims are without the batch dimension, as theirs."""
    limits = [variant.fixed_batch or variant.max_batch_size for variant in handle.variants]
    kinds = {variant.hardware for variant in handle.variants}
    return {
        "name": handle.name,
        "platform": handle.platform,
        "backend": "infaas" if handle.platform == PLATFORM else handle.platform.removesuffix("_onnx"),
        "runtime": "",
        "version_policy": {"specific": {"versions": list(handle.versions)}} if handle.versions else {"all": {}},
        "max_batch_size": max(limits, default=1),
        "input": [
            {**_tensor_config(spec), "format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": False}
            for spec in handle.inputs
        ],
        "output": [{**_tensor_config(spec), "label_filename": ""} for spec in handle.outputs],
        "optimization": {"priority": "PRIORITY_DEFAULT"},
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": 3,
            "default_priority_level": 2,
        },
        "instance_group": [
            {
                "name": handle.name,
                "kind": "KIND_GPU" if kinds == {Hardware.GPU} else "KIND_CPU",
                "count": 1,
                "gpus": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {key: {"string_value": text} for key, text in _config_parameters(handle).items()},
        "model_transaction_policy": {"decoupled": False},
    }


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    kind = "STRING" if spec.datatype is Datatype.BYTES else spec.datatype.value
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape[1:]), "is_shape_tensor": False}


def _config_parameters(handle: Handle) -> Mapping[str, str]:
    said = {"level": handle.level.value, "task": handle.task.name, "variants": str(len(handle.variants))}
    if handle.level is Level.VARIANT:
        variant = handle.variants[0]
        said |= {"model": variant.model, "recipe": variant.recipe, "threads": str(variant.threads)}
    return said


def repository_index(index: Index, is_ready_only: bool) -> list[dict[str, str]]:
    """Triton's rows: one per name and version. Tasks come first, then models by version, then variants."""
    rows: list[dict[str, str]] = []
    for name in index.names():
        handle = resolve(index, name)
        for version in handle.versions or (None,):
            of_version = handle if handle.level is Level.VARIANT else resolve(index, name, version)
            state, reason = state_of(index, of_version)
            if is_ready_only and state is not ModelState.READY:
                continue
            shown = "" if version is None else str(version)
            rows.append({"name": name, "version": shown, "state": state.value, "reason": reason})
    return rows
