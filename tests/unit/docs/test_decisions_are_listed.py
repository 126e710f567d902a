"""The list of architecture decisions names every page, in order, by the title that the page has."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).resolve().parents[3] / "docs" / "adr"


def test_every_decision_is_listed_in_order_by_its_number_and_title() -> None:
    headings = {page.name: page.read_text().splitlines()[0] for page in sorted(PAGES.glob("[0-9]*.md"))}
    rows = re.findall(r"^\| \[(\d{4})\]\((.+?)\) \| (.+) \|$", (PAGES / "README.md").read_text(), re.MULTILINE)

    assert [name for _, name, _ in rows] == list(headings)
    for number, name, title in rows:
        assert name.startswith(f"{number}-")
        assert re.sub(r"^# 0*", "", headings[name]).startswith(
            tuple(f"{int(number)}{dot} {title}" for dot in ("", ".", ":"))
        )
