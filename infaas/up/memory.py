"""How much memory a program of the system takes."""

from __future__ import annotations

from pathlib import Path


def pss_bytes(pid: int) -> int | None:
    """A process's proportional share of memory; None when it is gone or not ours to read."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
