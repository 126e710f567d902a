"""A running `otlp_receiver.py`, and what it has received so far."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECEIVER = Path(__file__).with_name("otlp_receiver.py")
PATIENCE_S = 30.0
LOOK_EVERY_S = 0.05
Span = dict[str, Any]


@dataclass(frozen=True)
class Collector:
    url: str
    file: Path

    def spans(self) -> list[Span]:
        if not self.file.exists():
            return []
        text = self.file.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait(self, is_enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Blocks: call it in a thread where a loop has work to do."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_enough(found := self.spans()):
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s in vain; received {found}"
            time.sleep(LOOK_EVERY_S)
        return found


@contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    file = folder / "spans.jsonl"
    process = subprocess.Popen(
        [sys.executable, str(RECEIVER), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield Collector(f"http://127.0.0.1:{int(process.stdout.readline())}", file)
    finally:
        process.communicate(timeout=PATIENCE_S)
