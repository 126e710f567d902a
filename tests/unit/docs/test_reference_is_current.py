"""The reference pages are written from the code; a change of the code without them is a failing test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "settings.md", "infaas.schema.json", "metrics.md", "errors.md"])
def test_a_reference_page_says_what_the_code_says(page: str) -> None:
    written = (ROOT / "docs" / "reference" / page).read_text()
    assert written == generator().pages()[page], "run python docs/generate.py"


def test_every_page_that_docs_link_to_exists() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        missing = (target for target in _links(page.read_text()) if not (page.parent / target).exists())
        broken.extend(f"{page.relative_to(ROOT)} -> {target}" for target in missing)
    assert broken == []


def _links(text: str) -> list[str]:
    found = []
    for piece in text.split("](")[1:]:
        target = piece.split(")", 1)[0].split("#", 1)[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            found.append(target)
    return found
