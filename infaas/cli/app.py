"""Puts the commands together, and turns every error of ours into one line and an exit status."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from infaas.cli import (
    attach,
    autoscaler,
    bench,
    catalogue,
    config,
    infer,
    models,
    programs,
    system,
    tasks,
    variants,
    workers,
)

FAILURE = 1
MISUSE = 2
UsageError: Any = typer.BadParameter.__bases__[0]
"""What the library raises for a command line that cannot be understood; it names only some of its kinds publicly."""


class Commands(TyperGroup):
    """Errors that commands raise on purpose end here; a traceback is always a bug."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            raise _misuse(error) from error

    def invoke(self, ctx: Any) -> Any:
        from infaas.cli.output import print_error
        from infaas.errors import InfaasError

        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _misuse(error) from error
        except InfaasError as error:
            print_error(error)
            raise typer.Exit(FAILURE) from error
        except BrokenPipeError as error:
            # The reader of our output left (`infaas ... | head`).
            raise typer.Exit(FAILURE) from error


def _misuse(error: Any) -> Exception:
    """Say in one line what is wrong and in another how the command is used; a command without arguments has its help
    to say instead."""
    if type(error).show is not UsageError.show:
        return error  # type: ignore[no-any-return]
    text = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
    typer.echo(f"error: {text[:1].lower()}{text[1:]}", err=True)
    if error.ctx is not None:
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        typer.echo(f"usage: {usage} (-h explains)", err=True)
    return typer.Exit(MISUSE)


app = typer.Typer(
    name="infaas",
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Model-less inference: say how fast, how accurate and how cheap; INFaaS picks the variant.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        import infaas

        typer.echo(f"infaas {infaas.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


system.add_to(app)
app.add_typer(programs.app, name="run")
app.add_typer(tasks.app, name="task")
attach.add_to(models.app)
app.add_typer(models.app, name="model")
app.add_typer(variants.app, name="variant")
infer.add_to(app)
bench.add_to(app)
app.add_typer(workers.app, name="worker")
app.add_typer(autoscaler.app, name="autoscaler")
app.add_typer(config.app, name="config")
app.add_typer(catalogue.app, name="catalog")
