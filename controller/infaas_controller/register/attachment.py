"""How a model of a Triton server fits a task: decided from what the server says, as an upload's graph is. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from infaas.domain.ids import name_problem
from infaas.domain.task import Task
from infaas.domain.tensor import TensorSpec
from infaas.triton.address import url_problem
from infaas.triton.facts import ModelFacts, ServerTensor
from infaas.triton.reference import FORMAT, Reference, TensorMap
from infaas_controller.register.fit import Edit, Fit, GraphTensor, fit
from infaas_controller.register.options import label_problems

_MAX_NAME = 1024


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """What a caller says about a model that is to be attached."""

    url: str
    """Of the server."""
    server_model: str
    """Its name there."""
    server_version: str
    """There; empty: the newest that is loaded."""
    task: str
    name: str | None = None
    """None: as on the server."""
    metric: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    accuracy: float | None = None
    price_usd_per_hour: float | None = None

    @property
    def model(self) -> str:
        return self.name if self.name is not None else self.server_model


@dataclass(frozen=True, slots=True)
class Attachment:
    """The reference means something only when there are no problems."""

    reference: Reference | None
    inputs: tuple[TensorSpec, ...]
    """The task's, or as this model would create it."""
    outputs: tuple[TensorSpec, ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def attach_problems(options: AttachOptions, task: Task | None, metrics: Collection[str]) -> list[str]:
    """Everything wrong with a request that can be said without asking the server."""
    problems = []
    if problem := url_problem(options.url):
        problems.append(problem)
    if not 0 < len(options.server_model) <= _MAX_NAME:
        problems.append(f"the server's model must be named, in at most {_MAX_NAME} characters")
    if problem := name_problem(options.task, "task"):
        problems.append(problem)
    if problem := name_problem(options.model, "model name"):
        problems.append(problem + ("" if options.name is not None else "; give one with --name"))
    elif options.model == options.task:
        problems.append(f"model and task cannot both be called {options.task!r}; give the model another --name")
    if options.metric is not None and options.metric not in metrics:
        problems.append(f"unknown metric {options.metric!r}; known are {', '.join(sorted(metrics))}")
    elif options.metric is not None and task is not None and task.metric != options.metric:
        problems.append(f"task {task.name!r} is scored by {task.metric!r}, not {options.metric!r}")
    if options.accuracy is not None and not 0 <= options.accuracy <= 1:
        problems.append(f"accuracy {options.accuracy!r} must be between 0 and 1")
    price = options.price_usd_per_hour
    if price is not None and not (math.isfinite(price) and price >= 0):
        problems.append(f"price {price!r} must be a number of USD per hour, 0 or more")
    for theirs, ours in options.mapping.items():
        if not theirs or not ours:
            problems.append(f"--map {theirs}={ours}: both names must be given, as theirs=ours")
    return problems + label_problems(options.labels)


def plan_attachment(facts: ModelFacts, options: AttachOptions, task: Task | None, max_batch_size: int) -> Attachment:
    """`max_batch_size`: the most items that variants are made for here."""
    what = f"model {facts.name!r} cannot be attached: "
    problems = [what + problem for problem in facts.problems]
    is_batched = _is_batched(facts, options, task)
    ambiguous = _ambiguous(facts, task) if is_batched else None
    if ambiguous is not None:
        problems.append(what + ambiguous)
    inputs = [_tensor(tensor, is_batched=is_batched) for tensor in facts.inputs]
    outputs = [_tensor(tensor, is_batched=is_batched) for tensor in facts.outputs]
    fitted = fit(inputs, outputs, options.mapping, task)
    problems += fitted.problems
    specs_in, specs_out = fitted.task_inputs, fitted.task_outputs
    if problems:
        return Attachment(None, specs_in, specs_out, tuple(problems), fitted.warnings)
    reference = _reference(facts, options, fitted, max_batch_size, is_batched=is_batched)
    warnings = list(fitted.warnings)
    if not is_batched:
        warnings.append("the model has no batch dimension: items are sent one by one")
    return Attachment(reference, specs_in, specs_out, (), tuple(warnings))


def _is_batched(facts: ModelFacts, options: AttachOptions, task: Task | None) -> bool:
    """A server without a batch limit may still take a first dimension that counts items; the task tells."""
    if facts.max_batch_size > 0 or task is None:
        return True
    ranks = {spec.name: len(spec.shape) for spec in task.inputs}
    short = [len(t.shape) + 1 == ranks.get(options.mapping.get(t.name, t.name)) for t in facts.inputs]
    return not (short and all(short))


def _ambiguous(facts: ModelFacts, task: Task | None) -> str | None:
    if facts.max_batch_size > 0 or task is not None:
        return None
    fixed = [t for t in (*facts.inputs, *facts.outputs) if not t.shape or t.shape[0] not in (-1, 1)]
    if not fixed:
        return None
    return (
        f"it has no batch limit (max_batch_size 0) and {fixed[0].name!r} has the shape {list(fixed[0].shape)}: whether "
        "its first dimension counts items cannot be told; create the task first (infaas task create), which says so"
    )


def _tensor(tensor: ServerTensor, *, is_batched: bool) -> GraphTensor:
    shape = tuple(None if size == -1 else size for size in tensor.shape)
    return GraphTensor(tensor.name, tensor.datatype, tensor.kind, shape if is_batched else (None, *shape))


def _reference(
    facts: ModelFacts, options: AttachOptions, fitted: Fit, max_batch_size: int, *, is_batched: bool
) -> Reference:
    most = min(facts.max_batch_size, max_batch_size) if facts.max_batch_size > 0 else max_batch_size
    return Reference(
        format=FORMAT,
        url=options.url.rstrip("/"),
        model=facts.name,
        version=facts.version,
        inputs=tuple(_map(edit, is_input=True) for edit in fitted.inputs),
        outputs=tuple(_map(edit, is_input=False) for edit in fitted.outputs),
        is_batched=is_batched,
        fixed_batch=fitted.fixed_batch,
        max_batch_size=fitted.fixed_batch or most,
        instances=facts.instances,
        hardware=facts.hardware,
        platform=facts.platform,
        price_usd_per_hour=options.price_usd_per_hour,
    )


def _map(edit: Edit, *, is_input: bool) -> TensorMap:
    return TensorMap(edit.ours, edit.theirs, edit.task_type, edit.model_type, edit.is_argmax and not is_input)
