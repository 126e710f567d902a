"""What a caller says beside the files of a registration, or when creating a task, and everything wrong with it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from infaas.domain.ids import name_problem
from infaas.domain.query import Level
from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import TensorSpec
from infaas.domain.variant import Isolation
from infaas.errors import InvalidError
from infaas.rpc.codec import from_plain, to_plain
from infaas.settings import TaskDefaultsSettings

MAX_LABELS = 64
MAX_LABEL_LENGTH = 256
DEFAULT_METRIC = "accuracy"


@dataclass(frozen=True, slots=True)
class Upload:
    """Files on this machine; `filename` is what the caller called the model's."""

    model: Path
    filename: str
    evaluation: Path | None = None
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class RegistrationOptions:
    task: str
    name: str | None = None
    """None: from the file's name."""
    metric: str | None = None
    """None: the task's, or accuracy."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    accuracy: float | None = None
    isolation: str | None = None
    """`thread` or `process`; None: thread."""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """What `task set` changes: only what is named. A default or label that is None is taken away."""

    defaults: Mapping[str, object] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def model_name(upload: Upload, options: RegistrationOptions) -> str:
    return options.name if options.name is not None else PurePosixPath(upload.filename).stem


def option_problems(
    upload: Upload, options: RegistrationOptions, task: Task | None, metrics: Collection[str]
) -> list[str]:
    """Everything wrong with a registration that can be said without reading its files."""
    problems = []
    if problem := name_problem(options.task, "task"):
        problems.append(problem)
    name = model_name(upload, options)
    if options.name is None and ("/" in upload.filename or "\\" in upload.filename):
        problems.append(f"file name {upload.filename!r} is a path; give a plain name, or --name")
    elif problem := name_problem(name, "model name"):
        problems.append(problem + ("" if options.name is not None else "; give one with --name"))
    elif name == options.task:
        problems.append(f"model and task cannot both be called {name!r}; give the model another --name")
    problems += _metric_problems(options, task, metrics)
    if options.accuracy is None and upload.evaluation is None:
        problems.append("neither evaluation data nor an accuracy is given: add --eval DATA.npz (or --accuracy X)")
    if options.accuracy is not None and not (math.isfinite(options.accuracy) and 0 <= options.accuracy <= 1):
        problems.append(f"accuracy {options.accuracy!r} must be between 0 and 1")
    for theirs, ours in options.mapping.items():
        if not theirs or not ours:
            problems.append(f"--map {theirs}={ours}: both names must be given, as theirs=ours")
    if options.isolation is not None and (problem := isolation_problem(options.isolation)):
        problems.append(problem)
    return problems + label_problems(options.labels)


def isolation_problem(word: str) -> str | None:
    """What is wrong with the word for where instances run; None when it is one."""
    known = [each.value for each in Isolation]
    return None if word in known else f"isolation {word!r} is not known; there are {' and '.join(known)}"


def _metric_problems(options: RegistrationOptions, task: Task | None, metrics: Collection[str]) -> list[str]:
    if options.metric is None:
        return []
    if options.metric not in metrics:
        return [f"unknown metric {options.metric!r}; known are {', '.join(sorted(metrics))}"]
    if task is not None and task.metric != options.metric:
        return [f"task {task.name!r} is scored by {task.metric!r}, not {options.metric!r}: scores must be comparable"]
    return []


def label_problems(labels: Mapping[str, str]) -> list[str]:
    problems = [problem for key in labels if (problem := name_problem(key, "label"))]
    problems += [
        f"label {key!r} is {len(value)} characters long; at most {MAX_LABEL_LENGTH}"
        for key, value in labels.items()
        if len(value) > MAX_LABEL_LENGTH
    ]
    if len(labels) > MAX_LABELS:
        problems.append(f"{len(labels)} labels are too many; at most {MAX_LABELS}")
    return problems


def clash(name: str, wanted: Level, taken: Level | None) -> str | None:
    """Why a name cannot be used at a level, when another level has it."""
    if taken is None or taken is wanted:
        return None
    return f"the name {name!r} is already taken by a {taken}; tasks, models and variants share one namespace"


def task_problems(task: Task, metrics: Collection[str]) -> list[str]:
    """Everything wrong with a task that a caller spells out."""
    problems = []
    if problem := name_problem(task.name, "task"):
        problems.append(problem)
    if task.metric not in metrics:
        problems.append(f"unknown metric {task.metric!r}; known are {', '.join(sorted(metrics))}")
    for what, specs in (("input", task.inputs), ("output", task.outputs)):
        if not specs:
            problems.append(f"a task needs at least one {what}")
        names = [spec.name for spec in specs]
        problems += [f"two {what}s are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        for spec in specs:
            problems += _spec_problems(what, spec)
    for name in sorted({spec.name for spec in task.inputs} & {spec.name for spec in task.outputs}):
        problems.append(f"{name!r} is an input and an output at once; names must differ")
    return problems + label_problems(task.labels) + default_problems(task.defaults)


def _spec_problems(what: str, spec: TensorSpec) -> list[str]:
    if not spec.name:
        return [f"an {what} has an empty name"]
    if not spec.shape or spec.shape[0] != -1:
        return [f"{what} {spec.name!r} has the shape {list(spec.shape)}; it must start with -1, which counts items"]
    if any(size != -1 and size < 1 for size in spec.shape):
        return [f"{what} {spec.name!r} has the shape {list(spec.shape)}; sizes are positive, or -1 for any"]
    return []


def default_problems(defaults: TaskDefaults) -> list[str]:
    plain = {key: value for key, value in to_plain(defaults).items() if value is not None}
    problems = []
    try:
        TaskDefaultsSettings.model_validate(plain)
    except ValidationError as error:
        problems += [f"default {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
    policies = {point.name for point in entry_points(group="infaas.policies")}
    if defaults.policy is not None and defaults.policy not in policies:
        problems.append(f"default policy {defaults.policy!r} is not known; there are {', '.join(sorted(policies))}")
    return problems


def changed_task(task: Task, change: TaskChange) -> Task:
    """The task after `task set`. Raises InvalidError with every problem."""
    plain = to_plain(task)
    known = set(plain["defaults"])
    problems = [
        f"unknown default {key!r}; known are {', '.join(sorted(known))}" for key in change.defaults if key not in known
    ]
    plain["defaults"] |= {key: value for key, value in change.defaults.items() if key in known}
    labels = plain["labels"] | dict(change.labels)
    plain["labels"] = {key: value for key, value in labels.items() if value is not None}
    if change.classes is not None:
        plain["classes"] = list(change.classes)
    try:
        after = from_plain(plain, Task)
    except InvalidError as error:
        raise InvalidError(error.text, problems=(*problems, error.text)) from error
    problems += label_problems(after.labels) + default_problems(after.defaults)
    raise_problems(problems)
    return after


def raise_problems(problems: Collection[str]) -> None:
    """Raise InvalidError that lists everything, when there is anything."""
    if problems:
        raise InvalidError(joined(problems), problems=tuple(problems))


def joined(problems: Collection[str]) -> str:
    if len(problems) == 1:
        return next(iter(problems))
    return f"{len(problems)} problems: " + "; ".join(problems)


def overlaid(task: Task, configured: TaskDefaultsSettings | None) -> TaskDefaults:
    """The defaults that hold: what the configuration says goes over what `task set` stored."""
    if configured is None:
        return task.defaults
    over = {key: value for key, value in configured.model_dump().items() if value is not None}
    return from_plain(to_plain(task.defaults) | over, TaskDefaults)


def fingerprint(*said: object) -> str:
    """What tells two requests under one idempotency key apart."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
