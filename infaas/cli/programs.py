"""`infaas run PROGRAM`: one program of the system in the foreground, for clusters, containers and unit files."""

from __future__ import annotations

import os
import sys

import typer

from infaas.cli.target import ConfigFile

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run one program of the system (for clusters).")


@app.command()
def controller(config: ConfigFile = None) -> None:
    """Serve queries and the control plane."""
    _become("controller", config)


@app.command()
def worker(config: ConfigFile = None) -> None:
    """Run instances of variants."""
    _become("worker", config)


@app.command()
def generator(config: ConfigFile = None) -> None:
    """Make and measure variants."""
    _become("generator", config)


def _become(program: str, config: os.PathLike[str] | None) -> None:
    """The program gets a fresh interpreter: its thread pools must be set before anything is imported."""
    env = dict(os.environ)
    if config is not None:
        env["INFAAS_CONFIG"] = os.path.abspath(config)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "infaas.programs", program], env)
