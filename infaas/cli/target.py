"""Which controller a command talks to: `--url`, INFAAS_URL, the local system that is up, or the usual port."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infaas.client import Client
    from infaas.up.record import Endpoints

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="INFAAS_URL", help="The controller. Default: the local system that is up."),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the bearer token. Default: INFAAS_TOKEN.")
]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="State folder of the local system.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="infaas.yaml. Default: INFAAS_CONFIG.")]


def connect(url: str | None, token_file: Path | None) -> Client:
    """Raises SettingsError or InvalidError; that nobody answers shows with the first call."""
    from infaas.client import DEFAULT_URL, Client

    found, local_token = (url, None) if url else _local()
    return Client(found or DEFAULT_URL, read_token(token_file) or local_token)


def read_token(token_file: Path | None) -> str | None:
    """The first line: while a token is being changed there are two, and that is the one to send."""
    from infaas.errors import InvalidError

    if token_file is None:
        text = os.environ.get("INFAAS_TOKEN", "").strip()
        return text.splitlines()[0].strip() if text else None
    try:
        text = token_file.read_text().strip()
    except OSError as error:
        raise InvalidError(f"--token-file {str(token_file)!r} cannot be read: {error.strerror}") from error
    if not text:
        raise InvalidError(f"--token-file {str(token_file)!r} is empty")
    return text.splitlines()[0].strip()


def local_state_dir(state_dir: Path | None) -> Path:
    if state_dir is not None:
        return state_dir.absolute()
    from infaas.settings import load_settings

    return load_settings().state_dir.absolute()


def endpoints_of(state_dir: Path) -> Endpoints | None:
    from infaas.up.record import read_endpoints

    return read_endpoints(state_dir)


def _local() -> tuple[str | None, str | None]:
    """The address of the local system and its token, when one is up."""
    from infaas.settings import load_settings

    settings = load_settings()
    endpoints = endpoints_of(settings.state_dir)
    return (None, None) if endpoints is None else (endpoints.url, settings.token())
