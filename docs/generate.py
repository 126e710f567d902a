"""Writes `docs/reference/` from the code, so that the reference cannot disagree with it.

python docs/generate.py            write the pages
python docs/generate.py --check    exit 1 and name the pages that are out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer.main

from infaas.cli.app import app
from infaas.observe.live import Live, LiveCollector
from infaas.observe.metrics import Metrics
from infaas.rpc.edges import EDGES
from infaas.settings import json_schema

FOLDER = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Written by docs/generate.py; edit the code instead. -->\n\n"


def pages() -> dict[str, str]:
    """File name -> text."""
    return {
        "cli.md": NOTE + cli_page(),
        "settings.md": NOTE + settings_page(),
        "infaas.schema.json": json.dumps(json_schema(), indent=2, sort_keys=True, default=str) + "\n",
        "metrics.md": NOTE + metrics_page(),
        "errors.md": NOTE + errors_page(),
    }


def cli_page() -> str:
    root = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "Every command takes `--help`; the ones that print documents take `-o table|json|yaml`.\n",
    ]
    for path, command in _commands(root, ("infaas",)):
        parts.append(f"## `{' '.join(path)}`\n")
        parts.append((command.help or command.short_help or "").strip() + "\n")
        rows = [_option_row(each) for each in command.params if not getattr(each, "hidden", False)]
        if rows:
            parts.append("| argument or option | meaning |\n|--|--|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*path, name))
    elif not command.hidden:
        yield path, command


def _option_row(parameter: Any) -> str:
    if isinstance(parameter, click.Argument) or parameter.param_type_name == "argument":
        name = f"`{(parameter.metavar or parameter.name or '').upper()}`"
    else:
        name = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    return f"| {name} | {_cell(getattr(parameter, 'help', '') or '')} |"


def settings_page() -> str:
    schema = json_schema()
    parts = [
        "# Settings\n",
        "One YAML file (`--config FILE` or `INFAAS_CONFIG`); every key is also a variable: `controller.http_port` is "
        "`INFAAS_CONTROLLER__HTTP_PORT`. A flag beats a variable, a variable beats the file. An unknown key is an "
        "error. The JSON schema is [infaas.schema.json](infaas.schema.json).\n",
        "| key | type | default | meaning |\n|--|--|--|--|",
    ]
    parts += list(_settings_rows(schema, schema, ()))
    return "\n".join(parts) + "\n"


def _settings_rows(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for name, field in node.get("properties", {}).items():
        reference = field.get("$ref") or field.get("additionalProperties", {}).get("$ref", "")
        if reference:
            inner = path + ((name,) if "$ref" in field else (name, "NAME"))
            yield from _settings_rows(schema, schema["$defs"][reference.rsplit("/", 1)[1]], inner)
            continue
        default = "" if name == "state_dir" else json.dumps(field.get("default"))
        shown = f"`{default}`" if default not in ("", "null") else ""
        yield f"| `{'.'.join((*path, name))}` | {_type(field)} | {shown} | {_cell(field.get('description', ''))} |"


def _type(field: dict[str, Any]) -> str:
    choices = field.get("anyOf", [field])
    words = [
        " / ".join(f"`{value}`" for value in each["enum"]) if "enum" in each else each.get("type", "")
        for each in choices
        if each.get("type") != "null"
    ]
    return " or ".join(words)


def metrics_page() -> str:
    rows = []
    metrics = Metrics()
    live = LiveCollector(lambda: Live(queue_size={"": 0}))
    families = [*metrics.registry.collect(), *live.describe()]
    for family in sorted(families, key=lambda each: each.name):
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {_cell(family.documentation)} |")
    return (
        "# Metrics\n\nPrometheus text on the metrics port, `GET /metrics`. Base units; gauges are counted from what "
        "lives at the moment of a scrape.\n\n| name | type | meaning |\n|--|--|--|\n" + "\n".join(rows) + "\n"
    )


def errors_page() -> str:
    rows = [
        f"| `{code.value}` | {edge.http} | {edge.grpc} | {f'`{edge.dropped}`' if edge.dropped else ''} |"
        for code, edge in EDGES.items()
    ]
    return (
        '# Errors\n\nThe body is `{"error", "code", "request_id", "decision_id", "retryable"}`, and `problems` where a '
        "check found several. Over gRPC the code is in the trailing metadata as `x-infaas-code`.\n\n"
        "| code | HTTP | gRPC | `x-infaas-dropped-reason` |\n|--|--|--|--|\n" + "\n".join(rows) + "\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    stale = [name for name, text in wanted.items() if _read(FOLDER / name) != text]
    if "--check" in arguments:
        if stale:
            print(f"out of date: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(wanted[name])
        print(f"wrote docs/reference/{name}")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
