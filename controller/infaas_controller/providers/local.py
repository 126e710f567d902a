"""Workers as processes of this machine. They outlive the controller that started them, and end with `infaas up`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from infaas.errors import InvalidError
from infaas.observe.log import get_logger
from infaas.processes.seat import SEAT
from infaas.rpc.codec import decode, encode
from infaas.settings import Settings
from infaas.up.crew import Crew, Member, MemberState
from infaas.up.plan import EXTRA_STOP_S, overrides_environ
from infaas.up.tether import SUPERVISOR_PID
from infaas_controller.providers.base import Machine, MachineState, Order, ProviderError

_STATES = {
    MemberState.BEGINNING: MachineState.STARTING,
    MemberState.RUNNING: MachineState.RUNNING,
    MemberState.ENDED: MachineState.ENDED,
}
Found = TypeVar("Found")
_log = get_logger(__name__)


class LocalProvider:
    """Controllers of one machine that are one cluster must be told the same folder (`fleet.folder`)."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._crew = Crew(settings.fleet_folder)
        self._patience_s = settings.worker.drain_timeout_s + EXTRA_STOP_S

    async def list(self) -> Sequence[Machine]:
        members = await _told(self._crew.members)
        found = [self._machine(one) for one in members]
        return [machine for machine in found if machine is not None]

    async def create(self, order: Order) -> None:
        argv = (sys.executable, "-m", "infaas.programs", "worker")
        pool = self._settings.pools.get(order.pool)
        limit = None if pool is None else pool.cpu_limit
        await _told(lambda: self._crew.start(order.id, argv, self._environ(order), encode(order), limit))

    async def remove(self, id: str) -> bool:
        return await _told(lambda: self._crew.end(id, self._patience_s))

    def _environ(self, order: Order) -> Mapping[str, str]:
        """What we were told ourselves, and what makes it this worker."""
        pool = self._settings.pools.get(order.pool)
        if pool is None:
            raise ProviderError(f"there is no pool {order.pool!r}")
        told = {
            "id": order.worker,
            "pool": order.pool,
            "inline": False,
            "cores": pool.cores,
            "memory_bytes": pool.memory_bytes,
            "listen": None,
            "advertise": None,
        }
        # A guardian is handed on: who ends with `infaas up` does so whichever of its processes started it.
        environ = {name: value for name, value in os.environ.items() if name not in (SEAT, SUPERVISOR_PID)}
        environ |= overrides_environ({"state_dir": str(self._settings.state_dir.absolute()), "worker": told})
        return environ

    def _machine(self, member: Member) -> Machine | None:
        try:
            order = decode(member.note, Order)
        except InvalidError as error:
            _log.warning("not a worker of ours; it is left alone", folder=member.id, reason=error.text)
            return None
        said = f"its log is {self._crew.log_path(member.id)}" if member.state is MemberState.ENDED else ""
        return Machine(order, _STATES[member.state], said)


async def _told(work: Callable[[], Found]) -> Found:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise ProviderError(f"workers of this machine cannot be told: {error}") from error
