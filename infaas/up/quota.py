"""Control groups that limit how much processor time a program gets, where this user may make them."""

from __future__ import annotations

import contextlib
from pathlib import Path

PERIOD_US = 10_000
"""Short, so that a program that has used up its time stands still for milliseconds only: with the usual 100 ms, a tenth
of a core would be nine parts of a second without an answer."""
_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class QuotaError(OSError):
    """No such group can be made; says why."""


def limit_cpu(name: str, cores: float, root: Path = _ROOT, own: Path = _OWN) -> Path:
    """Make a group beside this process's children that gets so many cores' worth of time, and return the file that
    takes processes in. One of that name that is there is set anew. Raises QuotaError."""
    quota_us = max(1_000, round(cores * PERIOD_US))
    try:
        version, parent = _parent(root, own)
        group = parent / name
        if version == 1:
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (parent / "cgroup.subtree_control").write_text("+cpu")
            group.mkdir(exist_ok=True)
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
    except OSError as error:
        raise QuotaError(
            f"a limit of {cores:g} cores needs a control group that this user may make: {error}"
        ) from error
    return group / "cgroup.procs"


def forget(processes: Path) -> None:
    """Remove the group again, once none of its processes is left; until then it stays."""
    with contextlib.suppress(OSError):
        processes.parent.rmdir()


def _parent(root: Path, own: Path) -> tuple[int, Path]:
    """The version of control groups and this process's own group of those that limit processor time. Raises OSError."""
    unified: Path | None = None
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if "cpu" in names:
            for mounted in ("cpu", controllers):
                if (root / mounted).is_dir():
                    return 1, root / mounted / path.lstrip("/")
        elif not controllers:
            unified = root / path.lstrip("/")
    if unified is None or not (unified / "cgroup.controllers").is_file():
        raise FileNotFoundError(f"none that limit processor time are mounted at {root}")
    return 2, unified
