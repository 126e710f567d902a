"""`infaas run PROGRAM`: one program of the system in the foreground, for clusters, containers and unit files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from infaas.cli.target import ConfigFile

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run one program of the system (for clusters).")


Check = Annotated[
    bool, typer.Option("--check", help="Start nothing: fail unless the one with these settings serves on this machine.")
]


@app.command()
def controller(
    config: ConfigFile = None,
    check: Check = False,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many processes share the controller's ports.")
    ] = None,
) -> None:
    """Serve queries and the control plane."""
    if check:
        from infaas.settings import load_settings
        from infaas.up.probe import check_controller

        typer.echo(f"The controller serves at {check_controller(load_settings(config))}.")
        return
    _become("controller", config, {} if processes is None else {"controller": {"processes": processes}})


@app.command()
def worker(config: ConfigFile = None, check: Check = False) -> None:
    """Run instances of variants."""
    if check:
        from infaas.settings import load_settings
        from infaas.up.probe import check_worker

        typer.echo(f"The worker serves at {check_worker(load_settings(config))}.")
        return
    _become("worker", config)


@app.command()
def generator(config: ConfigFile = None, check: Check = False) -> None:
    """Make and measure variants."""
    if check:
        from infaas.settings import load_settings
        from infaas.up.probe import check_generator

        typer.echo(f"The generator lives, with process id {check_generator(load_settings(config))}.")
        return
    _become("generator", config)


def _become(
    program: str, config: os.PathLike[str] | None, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """The program gets a fresh interpreter: its thread pools must be set before anything is imported."""
    from infaas.up.plan import overrides_environ

    env = {**os.environ, **overrides_environ(overrides or {})}
    if config is not None:
        env["INFAAS_CONFIG"] = os.path.abspath(config)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "infaas.programs", program], env)
