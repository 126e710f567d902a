"""`infaas task`: use cases with fixed inputs and outputs, and the requirements that apply when a query states none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from infaas.cli.output import Format, Output, Table, did, emit, joined, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infaas.control import TaskDocument
    from infaas.domain.tensor import TensorSpec

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tasks: what callers ask for.")

NONE = "none"
Name = Annotated[str, typer.Argument(help="The task.")]
Tensors = Annotated[
    list[str] | None, typer.Option(help="NAME:DATATYPE[SHAPE], such as image:FP32[-1,64]; may be repeated.")
]


@app.command()
def create(
    name: Name,
    input: Tensors = None,
    output_tensor: Annotated[
        list[str] | None, typer.Option("--result", help="An output, in the form of --input; may be repeated.")
    ] = None,
    metric: Annotated[str, typer.Option(help="How models are scored: accuracy, f1, mae, rmse or installed.")] = (
        "accuracy"
    ),
    classes: Annotated[str | None, typer.Option(help="Names of the classes, separated by commas.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a task by hand. The first registration of a model for a task creates it too."""
    from infaas.domain.ids import TaskName
    from infaas.domain.task import Task

    task = Task(
        TaskName(name),
        inputs=tuple(parse_tensor(text, "--input") for text in input or ()),
        outputs=tuple(parse_tensor(text, "--result") for text in output_tensor or ()),
        metric=metric,
        classes=tuple(classes.split(",")) if classes else (),
        labels=parse_labels(label or ()),
    )
    with connect(url, token_file) as client:
        made = client.create_task(task)
    emit(made, output, lambda: _describe(made))
    did(f"Created task {name}.", output)
    next_step(f"infaas model register FILE.onnx --task {name} --eval DATA.npz", output)


@app.command("list")
def list_(url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """All tasks."""
    with connect(url, token_file) as client:
        tasks = client.tasks()
    table = Table("TASK", ">MODELS", ">READY VARIANTS", ">BEST ACCURACY", ">DEFAULT FLOOR", "INPUTS", "OUTPUTS")
    for found in tasks:
        table.add(
            found.task.name,
            len(found.models),
            found.ready_variants,
            percent(found.best_accuracy),
            percent(found.default_floor),
            tensors(found.task.inputs),
            tensors(found.task.outputs),
        )
    emit({"tasks": tasks}, output, lambda: show(table))
    if tasks:
        next_step(f"infaas task describe {tasks[0].task.name}", output)
    else:
        next_step("infaas model register FILE.onnx --task NAME --eval DATA.npz", output)


@app.command()
def describe(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """One task: inputs, outputs, defaults, models."""
    with connect(url, token_file) as client:
        found = client.task(name)
    emit(found, output, lambda: _describe(found))
    next_step(f"infaas variant list --task {name}", output)


@app.command("set")
def set_(
    name: Name,
    slo_latency: Annotated[str | None, typer.Option(help="Default objective in ms, or 'none'.")] = None,
    slo_accuracy: Annotated[str | None, typer.Option(help="Default floor, 0 to 1, or 'none'.")] = None,
    max_cost: Annotated[str | None, typer.Option(help="Default cap, USD per 1,000 queries, or 'none'.")] = None,
    objective: Annotated[str | None, typer.Option(help="cost, accuracy, latency or 'none'.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, standard, sheddable or 'none'.")] = None,
    fallback: Annotated[str | None, typer.Option(help="allow, deny or 'none'.")] = None,
    policy: Annotated[str | None, typer.Option(help="Selection policy, or 'none'.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the classes, separated by commas.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Set default requirements of a task ('none' takes one back), its classes or labels."""
    from infaas.errors import InvalidError

    stated = {
        "slo_latency_ms": _float_or_none("--slo-latency", slo_latency),
        "slo_accuracy_min": _float_or_none("--slo-accuracy", slo_accuracy),
        "max_cost": _float_or_none("--max-cost", max_cost),
        "objective": objective,
        "priority": priority,
        "fallback": _fallback(fallback),
        "policy": policy,
    }
    defaults = {key: None if value == NONE else value for key, value in stated.items() if value is not None}
    changes: dict[str, Any] = {"defaults": defaults} if defaults else {}
    if classes is not None:
        changes["classes"] = classes.split(",") if classes else []
    if label:
        changes["labels"] = parse_labels(label)
    if not changes:
        raise InvalidError("nothing to set; `infaas task set --help` lists what can be")
    with connect(url, token_file) as client:
        found = client.set_task(name, changes)
    emit(found, output, lambda: _describe(found))
    did(f"Set {joined([*defaults, *(k for k in changes if k != 'defaults')])} of task {name}.", output)
    next_step(f"infaas infer {name} DATA.npz", output)


def parse_tensor(text: str, flag: str) -> TensorSpec:
    """`image:FP32[-1,64]`. Raises InvalidError."""
    import re

    from infaas.domain.tensor import Datatype, TensorSpec
    from infaas.errors import InvalidError

    match = re.fullmatch(r"(?P<name>[^:\s]+):(?P<datatype>[A-Z0-9]+)\[(?P<shape>-?\d+(?:,\s*-?\d+)*)\]", text)
    if match is None or match["datatype"] not in set(Datatype):
        raise InvalidError(f"{flag} {text!r} must be NAME:DATATYPE[SHAPE], such as image:FP32[-1,64]")
    return TensorSpec(match["name"], Datatype(match["datatype"]), tuple(int(n) for n in match["shape"].split(",")))


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    from infaas.errors import InvalidError

    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidError(f"--label {text!r} must be key=value")
        labels[key] = value
    return labels


def tensors(specs: Sequence[TensorSpec]) -> str:
    return joined([f"{spec.name}:{spec.datatype.value}{list(spec.shape)}".replace(" ", "") for spec in specs])


def _describe(found: TaskDocument) -> None:
    from infaas.rpc.codec import to_plain

    table = Table("FIELD", "VALUE")
    table.add("task", found.task.name)
    table.add("inputs", tensors(found.task.inputs))
    table.add("outputs", tensors(found.task.outputs))
    table.add("metric", found.task.metric)
    table.add("classes", joined(found.task.classes))
    table.add("labels", joined([f"{key}={value}" for key, value in found.task.labels.items()]))
    table.add("models", joined(found.models))
    table.add("ready variants", found.ready_variants)
    table.add("best accuracy", percent(found.best_accuracy))
    table.add("floor when none is stated", percent(found.default_floor))
    for key, value in to_plain(found.task.defaults).items():
        if value is not None:
            table.add(f"default {key}", number(value) if isinstance(value, float) else value)
    show(table)


def _float_or_none(flag: str, text: str | None) -> float | str | None:
    from infaas.errors import InvalidError

    if text is None or text == NONE:
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidError(f"{flag} {text!r} must be a number or 'none'") from None


def _fallback(text: str | None) -> bool | str | None:
    from infaas.errors import InvalidError

    if text is None or text == NONE:
        return text
    if text not in ("allow", "deny"):
        raise InvalidError(f"--fallback {text!r} must be 'allow', 'deny' or 'none'")
    return text == "allow"
