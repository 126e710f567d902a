"""How commands print: one document as a table for people, or as JSON or YAML for programs, and what to do next.

In JSON and YAML nothing but the document goes to standard output; remarks go to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from infaas.errors import InfaasError

WIDTH_WHEN_PIPED = 220


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("--output", "-o", help="How to print the answer.")]


class Table:
    """Columns and rows, still without any library: `show` draws it."""

    def __init__(self, *columns: str, title: str | None = None) -> None:
        """A column whose name starts with `>` is aligned to the right."""
        self.columns = columns
        self.title = title
        self.rows: list[tuple[str, ...]] = []
        self.styles: list[str | None] = []

    def add(self, *cells: object, style: str | None = None) -> None:
        self.rows.append(tuple("-" if cell is None else str(cell) for cell in cells))
        self.styles.append(style)


def console(*, is_error: bool = False) -> Console:
    from rich.console import Console

    file = sys.stderr if is_error else sys.stdout
    width = None if file.isatty() else WIDTH_WHEN_PIPED
    return Console(file=file, width=width, highlight=False, soft_wrap=not file.isatty())


def show(table: Table, out: Console | None = None) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", pad_edge=False, show_edge=False)
    for column in table.columns:
        is_right = column.startswith(">")
        drawn.add_column(column.lstrip(">"), justify="right" if is_right else "left", overflow="fold")
    for row, style in zip(table.rows, table.styles, strict=True):
        drawn.add_row(*(Text(cell) for cell in row), style=style)
    (out or console()).print(drawn)


def emit(value: object, output: Format, draw: Callable[[], None]) -> None:
    """Print a document: `draw` does it for people."""
    if output is Format.TABLE:
        draw()
        return
    from infaas.rpc.codec import to_plain

    print_plain(to_plain(value), output)


def print_plain(value: Any, output: Format) -> None:
    """JSON, or YAML for anything else."""
    if output is Format.JSON:
        import json

        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        import yaml

        typer.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def did(text: str, output: Format = Format.TABLE) -> None:
    """What the command did."""
    typer.echo(text, err=output is not Format.TABLE)


def next_step(command: str, output: Format = Format.TABLE) -> None:
    """The command that is useful now."""
    typer.echo(f"Next: {command}", err=output is not Format.TABLE)


def print_error(error: InfaasError) -> None:
    """One line; when one check found several problems, each on a line of its own."""
    if len(error.problems) > 1:
        typer.echo(f"error ({error.code.value}): {len(error.problems)} problems", err=True)
        for problem in error.problems:
            typer.echo(f"  - {problem}", err=True)
    else:
        typer.echo(f"error ({error.code.value}): {error.text}", err=True)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits; thousands in groups, and an exponent only below a ten-thousandth (6.66e-08)."""
    if value is None:
        return "-"
    rounded = f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(float(rounded)) >= 10**digits else rounded


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def memory(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.1f} MiB"


def joined(words: Sequence[object]) -> str:
    return ", ".join(str(word) for word in words) or "-"
