"""What this process may use of the machine: cores after affinity and cgroup quota, memory after the cgroup's limit."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Whole cores, at least one."""
    by_affinity = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup)
    return max(1, by_affinity if quota is None else min(by_affinity, int(quota)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Cores that the cgroup (version 2, or 1) grants; None when it does not limit."""
    words = _words(cgroup / "cpu.max")
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _words(cgroup / "cpu" / "cpu.cfs_quota_us"), _words(cgroup / "cpu" / "cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def usable_memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's memory, or the cgroup's limit when that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        words = _words(file)
        if words and words[0].isdigit():
            total = min(total, int(words[0]))
    return total


def pss_bytes(pid: int) -> int | None:
    """A process's proportional share of memory; None when it is gone or not ours to read."""
    for line in _lines(Path(f"/proc/{pid}/smaps_rollup")):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
