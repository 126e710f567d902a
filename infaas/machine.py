"""What this process may use of its machine: cores by affinity and quota, memory by its limit, instruction sets.

Every program asks here, so that the worker, the generator and `infaas doctor` agree. The quota and the limit are those
of the control group that a container sees as its root, in version 2 or 1 of the kernel's interface.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" with a number that no machine has."""


def allowed_cores() -> tuple[int, ...]:
    """The ids of the cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Cores' worth of time that the control group grants; None when it does not limit."""
    text = _read(cgroup / "cpu.max")  # version 2: "max 100000" or "150000 100000"
    if text is not None:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else float(quota) / float(period)
    quota_us, period_us = _read(cgroup / "cpu" / "cpu.cfs_quota_us"), _read(cgroup / "cpu" / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or float(quota_us) <= 0:
        return None
    return float(quota_us) / float(period_us)


def whole_cores(allowed: int, quota: float | None) -> int:
    """How many of the allowed cores the quota pays for wholly: at least one."""
    return allowed if quota is None else min(allowed, max(1, math.floor(quota + 1e-9)))


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many cores this process can keep busy: at least one."""
    return whole_cores(len(allowed_cores()), cpu_quota(cgroup))


def memory_limit_bytes(cgroup: Path = CGROUP) -> int | None:
    """None when the control group does not limit."""
    text = _read(cgroup / "memory.max") or _read(cgroup / "memory" / "memory.limit_in_bytes")
    if text is None or text == "max":
        return None
    limit = int(text)
    return limit if limit < _NO_LIMIT else None


def memory_used_ratio(cgroup: Path = CGROUP) -> float | None:
    """How full the control group's memory is; None when it is not limited. Pages of files that nobody has used lately
    count as free: the kernel gives them up before anything is refused."""
    limit = memory_limit_bytes(cgroup)
    if limit is None:
        return None
    used = _read(cgroup / "memory.current")
    if used is not None:
        idle = _statistic(_read(cgroup / "memory.stat"), "inactive_file")
    else:
        used = _read(cgroup / "memory" / "memory.usage_in_bytes")
        idle = _statistic(_read(cgroup / "memory" / "memory.stat"), "total_inactive_file")
    return None if used is None else max(0, int(used) - idle) / limit


def usable_memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's memory, or the control group's limit when that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit_bytes(cgroup)
    return total if limit is None else min(total, limit)


def cpu_features(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """Instruction set extensions by the kernel's names; none where the kernel does not tell."""
    return parse_features(_read(cpu_info) or "")


def parse_features(cpu_info: str) -> frozenset[str]:
    """What every processor of the listing has: work may be put on any of them."""
    lines = [line.partition(":") for line in cpu_info.splitlines()]
    found = [frozenset(value.split()) for key, _, value in lines if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()


def _statistic(text: str | None, name: str) -> int:
    """One line's number; 0 where the kernel does not tell."""
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _read(path: Path) -> str | None:
    """The file's text; None when the kernel does not offer it."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
