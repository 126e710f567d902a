"""What `infaas up` prints: one line per event, the ready message, and on a terminal one live line of states.

Written by hand rather than with a terminal library, because the supervisor lives as long as the system and every
megabyte it imports stays.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from infaas.up.record import Endpoints, ProgramRecord

MARKS = {"running": "●", "backing-off": "◌", "crash-loop": "✗", "stopped": "○"}
ERASE_LINE = "\r\x1b[2K"


class Console:
    """Owned by the supervisor's thread. The live line is drawn only when `out` is a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._is_terminal = self._out.isatty()
        self._has_line = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self._out, flush=True)

    def show(self, text: str) -> None:
        """Replace the live line."""
        if not self._is_terminal:
            return
        width = shutil.get_terminal_size().columns
        self._out.write(ERASE_LINE + text[: width - 1])
        self._out.flush()
        self._has_line = True

    def clear(self) -> None:
        if self._has_line:
            self._out.write(ERASE_LINE)
            self._has_line = False


class LogFollower:
    """Reads what was appended to some files since the last look; for `-v`."""

    def __init__(self, logs: Sequence[tuple[str, Path]]) -> None:
        self._logs = [(name, path) for name, path in logs]
        self._files: dict[str, BinaryIO] = {}
        self._rest: dict[str, bytes] = {}

    def lines(self) -> list[str]:
        """Whole new lines, each with its program's name."""
        found = []
        width = max((len(name) for name, _ in self._logs), default=0)
        for name, path in self._logs:
            if name not in self._files:
                if not path.exists():
                    continue
                self._files[name] = path.open("rb")
            *whole, rest = (self._rest.get(name, b"") + self._files[name].read()).split(b"\n")
            self._rest[name] = rest
            found += [f"{name:<{width}} | {line.decode(errors='replace')}" for line in whole]
        return found

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def status_line(state: str, programs: Sequence[ProgramRecord], up_s: float, wall: float) -> str:
    """`ready 0:01:05  redis ● controller ● worker-local-1 ◌ (again in 3 s)`"""
    words = []
    for program in programs:
        text = f"{program.name} {MARKS.get(program.state, '?')}"
        if program.next_try_at is not None:
            text += f" ({program.state}, again in {max(0.0, program.next_try_at - wall):.0f} s)"
        words.append(text)
    hours, rest = divmod(int(up_s), 3600)
    return f"{state} {hours}:{rest // 60:02}:{rest % 60:02}  " + "  ".join(words)


def ending(program: ProgramRecord, wall: float) -> str:
    """What to say when a program ended by itself."""
    wait = max(0.0, (program.next_try_at or wall) - wall)
    text = f"{program.name} ended: {program.last_exit}; again in {wait:.1f} s (log: {program.log})"
    if program.state == "crash-loop":
        text = f"{program.name} is in a crash loop: {program.last_exit}; again in {wait:.0f} s\n{tail(program.log)}"
    return text


def ready_text(endpoints: Endpoints, workers: Sequence[str], state_dir: Path, after_s: float) -> str:
    return "\n".join(
        [
            f"infaas is ready after {after_s:.1f} s; its state is in {state_dir}",
            f"  REST     {endpoints.url}",
            f"  gRPC     {endpoints.grpc}",
            f"  metrics  {endpoints.metrics_url}",
            f"  workers  {', '.join(workers) or 'none'}",
            "Next: infaas model register FILE.onnx --task NAME --eval DATA.npz   "
            f"(or, to see it work: infaas demo --url {endpoints.url})",
        ]
    )


def tail(log: str, lines: int = 8) -> str:
    """The last lines of a log, indented."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"  ({log}: {error.strerror})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or f"  ({log} is empty)"
