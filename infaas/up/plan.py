"""Which programs a local system consists of, and how each is started: from settings to a table of commands.

Everything a program is told goes through its environment, so that a restart tells it the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infaas.errors import SettingsError
from infaas.settings import ENV_PREFIX, Settings

REDIS_STOP_S = 10.0
EXTRA_STOP_S = 5.0
"""What a program may take beyond its drain before it is killed."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program. Lower `stop_stage`s are asked to stop first, and the next stage only when they are gone."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Over the supervisor's own environment."""
    stop_stage: int = 0
    stop_timeout_s: float = 10.0
    descriptors: tuple[int, ...] = ()
    """Of open files that it is handed, under the same numbers."""
    worker: str | None = None
    """The worker that lives in it, if one does, in words."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the programs share."""

    cores: int
    memory_bytes: int


def overrides_environ(overrides: Mapping[str, Any], prefix: str = ENV_PREFIX) -> dict[str, str]:
    """Nested settings as `INFAAS_*` variables, which is how flags reach the programs."""
    found: dict[str, str] = {}
    for key, value in overrides.items():
        name = f"{prefix}{key.upper()}"
        if isinstance(value, Mapping):
            found.update(overrides_environ(value, f"{name}__"))
        else:
            # Settings read text as it stands, and an empty variable as "unset".
            found[name] = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return found


def programs(settings: Settings, machine: Machine, redis_argv: Sequence[str] | None) -> list[ProgramSpec]:
    """The whole table. Everything is started at once; on the way down the controller stops taking queries first, the
    workers that answer its last ones go next, and the store outlives them all. With `worker.inline` the first worker
    lives in the controller's process. Raises SettingsError when there is none that could."""
    own = settings.controller
    # The master of several processes waits for each as long as we would for one, and is not to be killed meanwhile.
    controller_drain_s = own.drain_timeout_s + (EXTRA_STOP_S if own.processes > 1 else 0.0)
    workers = _workers(settings, machine)
    table = [
        _program("controller", settings, {}, stage=0, drain_s=controller_drain_s),
        _program("generator", settings, {}, stage=0, drain_s=settings.generator.lease_ttl_s),
        *workers,
    ]
    if settings.worker.inline:
        if not workers:
            raise SettingsError("worker.inline needs a worker: set pools.NAME.workers (--workers) to 1 or more")
        table.remove(workers[0])
        table[0] = _with_inline(table[0], workers[0], settings.worker.drain_timeout_s)
    if redis_argv is not None:
        # The server is not ours and knows no supervisor: the tether ties it and becomes it.
        tether = (sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), "{supervisor}", "--")
        table.insert(0, ProgramSpec("redis", (*tether, *redis_argv), stop_stage=2, stop_timeout_s=REDIS_STOP_S))
    return table


def _workers(settings: Settings, machine: Machine) -> list[ProgramSpec]:
    """One per configured pool member. Workers that name no resources share the machine's evenly."""
    total = sum(pool.workers for pool in settings.pools.values())
    table = []
    for pool_name, pool in settings.pools.items():
        for number in range(1, pool.workers + 1):
            told: dict[str, Any] = {"id": f"{pool_name}-{number}", "pool": pool_name, "inline": False}
            if total > 1 and pool.cores is None and settings.worker.cores is None:
                told["cores"] = max(1, machine.cores // total)
            if total > 1 and pool.memory_bytes is None and settings.worker.memory_bytes is None:
                told["memory_bytes"] = max(2**20, machine.memory_bytes // 2 // total)
            name = f"worker-{told['id']}"
            drain_s = settings.worker.drain_timeout_s
            spec = _program("worker", settings, {"worker": told}, stage=1, drain_s=drain_s, name=name)
            table.append(replace(spec, worker=name))
    return table


def _with_inline(controller: ProgramSpec, worker: ProgramSpec, drain_s: float) -> ProgramSpec:
    """The controller's program with this worker inside: both drain, one after the other."""
    env = {**controller.env, **worker.env, **overrides_environ({"worker": {"inline": True}})}
    stop_s = controller.stop_timeout_s + drain_s
    return replace(controller, env=env, stop_timeout_s=stop_s, worker=f"{worker.name} (in the controller's process)")


def _program(
    program: str, settings: Settings, told: Mapping[str, Any], *, stage: int, drain_s: float, name: str | None = None
) -> ProgramSpec:
    env = overrides_environ({"state_dir": str(settings.state_dir.absolute()), **told})
    argv = (sys.executable, "-m", "infaas.programs", program)
    return ProgramSpec(name or program, argv, env, stop_stage=stage, stop_timeout_s=drain_s + EXTRA_STOP_S)
