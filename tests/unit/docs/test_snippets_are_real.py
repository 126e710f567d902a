"""Commands that the README and the pages of docs/ tell a reader to type exist, with the options that they are given.

Nothing is run here: each is held against the command line's own parser. `tests/e2e/test_readme.py` runs the README's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from infaas.cli.app import app

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOT_COMMAND: Any = typer.main.get_command(app)
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def typed() -> Iterator[tuple[str, list[str]]]:
    """Each command of the fenced shell blocks: the page that has it, and its words."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield page.name, words


def mentioned() -> Iterator[tuple[str, str]]:
    """Each `infaas ...` within a sentence."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        yield from ((page.name, found) for found in re.findall(r"`infaas ([^`]+)`", text))


def of(program: str) -> list[tuple[str, list[str]]]:
    return [(page, words[1:]) for page, words in typed() if words[0] == program]


def named(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them. Raises KeyError for a name that none has."""
    command = ROOT_COMMAND
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("page", "words"), of("infaas"), ids=lambda value: " ".join(value)[:60])
def test_a_command_of_a_page_is_one_that_the_command_line_takes(page: str, words: list[str]) -> None:
    command, rest = named(words)
    assert command.make_context(command.name, list(rest)).params is not None, page


def test_commands_within_sentences_exist() -> None:
    wrong = []
    for page, text in mentioned():
        for first in text.split()[0].split("|"):
            words = [first, *text.split()[1:]]
            try:
                for last in words[1].split("|") if len(words) > 1 else [""]:
                    named([first, *([last] if last else []), *words[2:]])
            except KeyError:
                wrong.append(f"{page}: infaas {text}")
    assert wrong == []


def test_benchmarks_and_make_targets_of_a_page_exist() -> None:
    text = {page.name: page.read_text() for page in PAGES}
    wrong = [
        f"{page}: {script}"
        for page, said in text.items()
        for script in re.findall(r"python (benchmarks/\w+\.py)", said)
        if not (ROOT / script).is_file()
    ]
    wrong += [
        f"{page}: make {target}"
        for page, said in text.items()
        for target in re.findall(r"`make ([a-z-]+)`", said)
        if target not in MAKE_TARGETS
    ]
    wrong += [f"{page}: make {words[0]}" for page, words in of("make") if words[0] not in MAKE_TARGETS]
    for page, words in of("python"):
        source = (ROOT / words[0]).read_text()
        wrong += [f"{page}: {words[0]} {flag}" for flag in words if flag.startswith("--") and f'"{flag}"' not in source]
    assert wrong == []


def test_the_readme_shows_the_way_to_every_page() -> None:
    links = set(re.findall(r"\]\((docs/[\w./-]+)\)", (ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= links
