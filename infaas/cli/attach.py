"""`infaas model attach` and `infaas model discover`: models that a Triton server serves already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infaas.cli.models import DATA, wait
from infaas.cli.output import Format, Output, Table, did, emit, next_step, show
from infaas.cli.target import TokenFile, Url, connect

Server = Annotated[
    str | None,
    typer.Option("--triton", help="The server, grpc://HOST:PORT. Default: the controller's worker.triton_url."),
]


def add_to(app: typer.Typer) -> None:
    app.command("attach")(attach)
    app.command("discover")(discover)


def attach(
    model: Annotated[str, typer.Argument(help="The model's name on the server.")],
    task: Annotated[str, typer.Option(help="The task it solves; made from the model if it is new.")],
    triton: Server = None,
    eval_: Annotated[Path | None, typer.Option("--eval", help=f"What accuracy is measured on: {DATA}.")] = None,
    model_version: Annotated[
        str | None, typer.Option("--model-version", help="On the server. Default: the newest that is loaded.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name here; default: as there.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, f1, mae, rmse or an installed one.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="theirs=ours, a tensor's name; repeat.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Declare it instead of measuring (marked as such).")] = None,
    price: Annotated[float | None, typer.Option(help="USD per hour of one of the server's instances.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the measurement.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Let a Triton server's model answer queries too: it is measured over the wire, then it may be selected."""
    with connect(url, token_file) as client:
        attached = client.attach(
            model,
            task=task,
            server=triton,
            version=model_version,
            evaluation=eval_,
            name=name,
            metric=metric,
            renames=map_ or (),
            labels=label or (),
            accuracy=accuracy,
            price=price,
        )
        for warning in attached.warnings:
            typer.echo(f"warning: {warning}", err=True)
        if attached.created_task:
            did(f"Created task {attached.task} from the model's inputs and outputs.", output)
        new = "is attached" if attached.is_new else "was attached before"
        did(f"{model} {new} as {attached.model} version {attached.version}.", output)
        if detach:
            emit(attached, output, lambda: None)
            next_step(f"infaas model status {attached.model} -w", output)
            return
        wait(client, attached.model, attached.version, output)


def discover(
    triton: Server = None, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE
) -> None:
    """The models of a Triton server, and which of them can be attached."""
    with connect(url, token_file) as client:
        found = client.triton_models(triton)
    table = Table("MODEL", "VERSION", "STATE", "PLATFORM", "INPUTS", "OUTPUTS", ">MAX BATCH", "REMARKS")
    for one in found:
        remarks = "; ".join((*one.problems, one.reason) if one.reason else one.problems)
        shown = ("; ".join(one.inputs) or "-", "; ".join(one.outputs) or "-")
        table.add(
            one.name, one.version or "-", one.state, one.platform or "-", *shown, one.max_batch_size, remarks or "-"
        )
    emit({"models": found}, output, lambda: show(table))
    server = f" --triton {triton}" if triton else ""
    able = [one.name for one in found if not one.problems]
    next_step(f"infaas model attach {able[0] if able else 'MODEL'} --task TASK --eval DATA.npz{server}", output)
