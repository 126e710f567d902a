"""The command `infaas`. Importing this costs nothing; each command imports what it needs when it runs."""

from __future__ import annotations


def main() -> None:
    """The entry point of the installed script."""
    from infaas.cli.app import app

    app()
