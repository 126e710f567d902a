"""`infaas config`: what the settings are, whether a file is right, and the schema of `infaas.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infaas.cli.output import Format, Output, did, next_step, print_plain
from infaas.cli.target import ConfigFile

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Settings: infaas.yaml and INFAAS_* variables.")


@app.command()
def validate(
    file: Annotated[Path | None, typer.Argument(help="infaas.yaml; default: INFAAS_CONFIG.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Check a file together with the environment; every problem is named."""
    from infaas.settings import load_settings

    settings = load_settings(file)
    settings.require_secrets()
    if output is not Format.TABLE:
        print_plain({"valid": True, "file": str(file) if file else None}, output)
    did(f"{file or 'the configuration'} is valid", output)
    next_step(f"infaas up{f' --config {file}' if file else ''}", output)


@app.command()
def show(config: ConfigFile = None, output: Output = Format.YAML) -> None:
    """Print every setting with the value that applies (secrets are hidden)."""
    from infaas.settings import load_settings

    print_plain(load_settings(config).shown(), Format.YAML if output is Format.TABLE else output)


@app.command()
def schema(output: Output = Format.JSON) -> None:
    """Print the JSON schema of infaas.yaml."""
    from infaas.settings import json_schema

    print_plain(json_schema(), Format.YAML if output is Format.YAML else Format.JSON)
