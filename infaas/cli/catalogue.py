"""`infaas catalog`: the durable catalogue's tables, brought up to date, and back for an older release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, did, emit, next_step
from infaas.cli.target import ConfigFile

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The catalogue's tables.")


@app.command()
def status(config: ConfigFile = None, output: Output = Format.TABLE) -> None:
    """Where the catalogue is, which revision its tables have, and which ones this program knows."""
    from infaas.catalog.schema import current_revision, revisions

    with _open(config) as engine:
        document = {
            "database": engine.url.render_as_string(hide_password=True),
            "revision": current_revision(engine),
            "known": list(revisions()),
        }
    emit(document, output, lambda: typer.echo("\n".join(f"{name:<9} {value}" for name, value in document.items())))
    next_step("infaas catalog migrate", output)


@app.command()
def migrate(
    revision: Annotated[str, typer.Argument(help="A known revision, or `head` for the newest.")] = "head",
    config: ConfigFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Bring the tables to a revision, forwards or back. Stop the controllers before going back."""
    from infaas.catalog import schema
    from infaas.errors import InvalidError

    if revision != "head" and revision not in schema.revisions():
        raise InvalidError(f"no revision {revision!r}; known are {', '.join(schema.revisions())}, and head")
    with _open(config) as engine:
        before = schema.current_revision(engine)
        schema.migrate(engine, revision)
        after = schema.current_revision(engine)
    emit({"before": before, "after": after}, output, lambda: None)
    did(f"the catalogue's tables have revision {after}" + (f"; it was {before}" if before != after else ""), output)
    next_step("infaas catalog status", output)


@contextmanager
def _open(config: Path | None) -> Iterator[Engine]:
    from infaas.catalog.schema import open_engine
    from infaas.settings import load_settings

    engine = open_engine(load_settings(config).database_url)
    try:
        yield engine
    finally:
        engine.dispose()
