"""What every question answers with: a table for people, the same as data, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataplane.servers import LeftOut


@dataclass(frozen=True, slots=True)
class Answer:
    title: str
    table: str
    left_out: Sequence[LeftOut]
    data: Any
    charts: Mapping[str, bytes] = field(default_factory=dict)
    """SVG by what it shows."""
    is_kept: bool = True
    """False: a promise was broken, and the table says which."""
