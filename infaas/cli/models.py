"""`infaas model`: registering models, their versions, and which version serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, Table, console, did, emit, joined, next_step, show
from infaas.cli.target import TokenFile, Url, connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infaas.client import Client
    from infaas.control import BuildDocument, ModelDocument, VersionDocument

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models: register, watch, roll back.")

Name = Annotated[str, typer.Argument(help="The model.")]
DATA = "an .npz with one array per input, and `label` or the outputs' names"


@app.command()
def register(
    file: Annotated[Path, typer.Argument(help="The model, an ONNX file.")],
    task: Annotated[str, typer.Option(help="The task it solves; made from the model if it is new.")],
    eval_: Annotated[Path | None, typer.Option("--eval", help=f"What accuracy is measured on: {DATA}.")] = None,
    calibration: Annotated[Path | None, typer.Option(help=f"For transformations only, never scored: {DATA}.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; default: the file's.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, f1, mae, rmse or an installed one.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="theirs=ours, a tensor's name; repeat.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Declare it instead of measuring (marked as such).")] = None,
    isolation: Annotated[
        str | None, typer.Option(help="thread (default), or process: its crashes and hangs harm nothing else.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the variants.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Repeating a call with the same key is safe.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Upload a model; its variants are made, verified and measured, then it serves."""
    with connect(url, token_file) as client:
        registered = client.register(
            file,
            task=task,
            evaluation=eval_,
            calibration=calibration,
            name=name,
            metric=metric,
            renames=map_ or (),
            labels=label or (),
            accuracy=accuracy,
            isolation=isolation,
            idempotency_key=idempotency_key,
        )
        for warning in registered.warnings:
            typer.echo(f"warning: {warning}", err=True)
        model, version = registered.model, registered.version
        if registered.created_task:
            did(f"Created task {registered.task} from the model's inputs and outputs.", output)
        new = "is registered" if registered.is_new else "was registered before"
        did(f"{file.name} {new} as {model} version {version}.", output)
        if detach:
            emit(registered, output, lambda: None)
            next_step(f"infaas model status {model} -w", output)
            return
        wait(client, model, version, output)


@app.command("list")
def list_(url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """All models."""
    with connect(url, token_file) as client:
        models = client.models()
    table = Table("MODEL", "TASK", "STATE", ">SERVES", ">VERSIONS", "LABELS", "REASON")
    for found in models:
        labels = joined([f"{key}={value}" for key, value in found.labels.items()])
        table.add(found.name, found.task, found.state, found.current, len(found.versions), labels, found.reason or "-")
    emit({"models": models}, output, lambda: show(table))
    if models:
        next_step(f"infaas model describe {models[0].name}", output)
    else:
        next_step("infaas model register FILE.onnx --task NAME --eval DATA.npz", output)


@app.command()
def describe(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """One model and its versions."""
    with connect(url, token_file) as client:
        found = client.model(name)
    emit(found, output, lambda: _describe(found))
    next_step(f"infaas variant list --model {name}", output)


@app.command()
def versions(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """The versions of a model."""
    with connect(url, token_file) as client:
        found = client.versions(name)
    emit({"versions": found}, output, lambda: _show_versions(found))
    next_step(f"infaas model status {name}", output)


@app.command()
def status(
    name: Name,
    version: Annotated[int | None, typer.Option(help="Default: the newest.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until the build is over.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """How far the variants of a version are."""
    from infaas.errors import NotFoundError

    with connect(url, token_file) as client:
        if version is None:
            known = client.versions(name)
            if not known:
                raise NotFoundError(f"model {name!r} has no versions")
            version = max(one.version for one in known)
        if watch:
            wait(client, name, version, output)
            return
        found = client.build(name, version)
        emit(found, output, lambda: _show_build(client, found))
    next_step(
        f"infaas variant list --model {name}" if found.state == "READY" else f"infaas model status {name} -w", output
    )


@app.command()
def rollback(
    name: Name,
    version: Annotated[int | None, typer.Option(help="Default: the one before the current.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Serve an earlier version again."""
    with connect(url, token_file) as client:
        found = client.rollback(name, version)
    emit(found, output, lambda: _describe(found))
    did(f"{name} serves version {found.current}.", output)
    next_step(f"infaas model describe {name}", output)


@app.command()
def unregister(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """Take a model out of service; its instances finish what they have."""
    with connect(url, token_file) as client:
        client.unregister(name)
    emit({"model": name, "unregistered": True}, output, lambda: None)
    did(f"{name} is unregistered; its instances drain.", output)
    next_step("infaas model list", output)


def wait(client: Client, model: str, version: int, output: Format) -> None:
    """Follow a build with bars; raises when it fails."""
    from infaas.cli.builds import Bars, follow, show_outcomes, wait_until_serving
    from infaas.cli.variants import show_variants
    from infaas.domain.query import Code
    from infaas.errors import InfaasError

    last = client.build(model, version)
    with Bars(console(is_error=output is not Format.TABLE)) as bars:
        for last in follow(client, model, version):
            bars.update(last)
    if last.state != "READY":
        if output is Format.TABLE:
            show_outcomes(client, model, version)
        raise InfaasError(f"{model} version {version} is {last.state}: {last.reason}", code=Code.MODEL_FAILED)
    is_serving = wait_until_serving(client, model, version)
    found = [one for one in client.variants(model=model) if one.version == version]
    emit({"model": model, "version": version, "variants": found}, output, lambda: show_variants(found))
    document = client.model(model)
    state = "serves"
    if not is_serving:
        other = "no version serves here yet" if document.serves is None else f"version {document.serves} serves"
        state = f"is ready ({other})"
    did(f"{model} version {version} {state} with {len(found)} variants.", output)
    next_step(f"infaas infer {document.task} DATA.npz --slo-latency 50", output)


def _describe(found: ModelDocument) -> None:
    table = Table("FIELD", "VALUE")
    table.add("model", found.name)
    table.add("task", found.task)
    table.add("state", f"{found.state}{f': {found.reason}' if found.reason else ''}")
    table.add("serves version", found.current)
    table.add("labels", joined([f"{key}={value}" for key, value in found.labels.items()]))
    show(table)
    _show_versions(found.versions)


def _show_versions(found: Sequence[VersionDocument]) -> None:
    table = Table(">VERSION", "STATE", "SERVES", "CREATED", ">VARIANTS", "METRIC", ">EVAL ROWS", "DIGEST", "REASON")
    for one in found:
        rows = one.evaluation_rows if one.declared_accuracy is None else "declared"
        table.add(
            one.version,
            one.state,
            "yes" if one.is_current else "",
            one.created_at,
            len(one.variants),
            one.metric,
            rows,
            one.digest[:12],
            one.reason or "-",
        )
    show(table)


def _show_build(client: Client, found: BuildDocument) -> None:
    """How far each recipe is; once the build is over, what became of it."""
    from infaas.cli.builds import OVER, show_outcomes

    typer.echo(f"{found.model} version {found.version}: {found.state}{f', {found.reason}' if found.reason else ''}")
    table = Table("RECIPE", "STAGE", ">DONE", "DETAIL")
    for one in found.progress:
        table.add(one.recipe, one.stage, f"{100 * one.fraction:.0f}%", one.detail or "-")
    if found.state in OVER:
        show_outcomes(client, found.model, found.version)
    elif found.progress:
        show(table)
