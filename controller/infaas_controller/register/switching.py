"""Brings wanted versions into service: load and warm first, then switch (SURFACE rule 6).

A level-triggered step, called a few times a second by the registrar's loop. It never waits: what a worker is loading
now is looked at again in the next step, and everything but the pace of attempts is read anew each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import ModelRow
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import ModelName, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.task import Task
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas_controller.register.warm import instance_states, is_coming, is_warm, preference

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_ANSWER_WITHIN_S = 10.0
"""How long a worker that was asked to load may take to say that it does, before it is asked again."""
_PRELOAD_ATTEMPTS = 6
_log = get_logger(__name__)


class Loader(Protocol):
    """The part of `ports.QueryService` that the registrar needs."""

    @property
    def view(self) -> ClusterView: ...

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId: ...

    def unload(self, variant: VariantName) -> int: ...


@dataclass(slots=True)
class _Warming:
    """The attempts to make one version warm; owned by `Switcher`."""

    version: int
    candidate: int = 0
    attempts: int = 0
    next_at: float = 0.0
    asked_at: float | None = None


class Switcher:
    """Owned by the registrar's loop; only it calls `step`."""

    def __init__(self, catalog: Catalog, service: Loader, clock: Clock) -> None:
        self._catalog = catalog
        self._service = service
        self._clock = clock
        self._warming: dict[ModelName, _Warming] = {}
        self._preload: dict[ModelName, int] = {}
        """Versions that serve already but should not begin cold."""

    async def step(self, tasks: Sequence[Task], models: Sequence[ModelRow], variants: Sequence[Variant]) -> bool:
        """One look at every model; True when a version was switched."""
        by_name = {task.name: task for task in tasks}
        live = {row.name for row in models}
        for gone in [name for name in (*self._warming, *self._preload) if name not in live]:
            self._warming.pop(gone, None)
            self._preload.pop(gone, None)
        has_switched = False
        for row in models:
            task = by_name[row.task]
            if row.wanted is not None and row.wanted != row.current:
                has_switched |= await self._bring_in(row, row.wanted, task, variants)
            elif row.name in self._preload:
                await self._preload_step(row, task, variants)
            else:
                self._warming.pop(row.name, None)
        return has_switched

    async def _bring_in(self, row: ModelRow, wanted: int, task: Task, variants: Sequence[Variant]) -> bool:
        if row.current is None:  # nothing serves: a cold version is better than none
            self._preload[row.name] = wanted
        elif not await self._is_warm(row, wanted, task, variants):
            return False
        self._warming.pop(row.name, None)
        is_done = await asyncio.to_thread(self._catalog.switch, row.name, wanted, at=self._clock.wall())
        if is_done:
            _log.info("version switched", model=row.name, version=wanted, before=row.current)
        return is_done

    async def _preload_step(self, row: ModelRow, task: Task, variants: Sequence[Variant]) -> None:
        version = self._preload[row.name]
        is_over = row.current != version or await self._is_warm(row, version, task, variants)
        warming = self._warming.get(row.name)
        if is_over or (warming is not None and warming.attempts >= _PRELOAD_ATTEMPTS):
            self._preload.pop(row.name, None)
            self._warming.pop(row.name, None)
            if not is_over:
                _log.warning("not preloaded: queries will load it", model=row.name, version=version)

    async def _is_warm(self, row: ModelRow, version: int, task: Task, variants: Sequence[Variant]) -> bool:
        """Whether the variant that queries would want is READY; when it is not, see to it that it will be."""
        warming = self._warming.get(row.name)
        if warming is None or warming.version != version:
            warming = self._warming[row.name] = _Warming(version)
        wanted = preference(task, [v for v in variants if v.model == row.name and v.version == version])
        if not wanted:
            await self._explain(row, f"no variant of version {version} can serve: none is enabled and profiled")
            return False
        view = self._service.view
        variant = wanted[warming.candidate % len(wanted)]
        if is_warm(view, variant):
            return True
        if is_coming(view, variant):
            warming.asked_at = None
            return False
        await self._ask(row, warming, variant, view)
        return False

    async def _ask(self, row: ModelRow, warming: _Warming, variant: VariantName, view: ClusterView) -> None:
        """Ask a worker to load, unless one was asked just now; after a failure the next best variant is tried."""
        now = self._clock.now()
        failed = [reason for state, reason in instance_states(view, variant) if state is InstanceState.FAILED]
        if warming.asked_at is not None:
            if failed:
                warming.asked_at = None
                await self._failed(row, warming, f"{variant} did not load: {failed[0]}")
            elif now - warming.asked_at < _ANSWER_WITHIN_S:
                return
            else:
                warming.asked_at = None
                await self._failed(row, warming, f"no worker answered the request to load {variant}")
            return
        if now < warming.next_at or variant not in view.variants:
            return
        try:
            worker = self._service.load(variant)
        except InfaasError as error:
            await self._failed(row, warming, f"{variant} cannot be loaded: {error.text}")
        else:
            warming.asked_at = now
            _log.info("warming", model=row.name, version=warming.version, variant=variant, worker=worker)

    async def _failed(self, row: ModelRow, warming: _Warming, reason: str) -> None:
        warming.candidate += 1
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(warming.attempts, 10))
        warming.attempts += 1
        warming.next_at = self._clock.now() + pause_s
        _log.warning("not warm yet", model=row.name, version=warming.version, reason=reason, retry_s=pause_s)
        await self._explain(row, f"version {warming.version} waits to be warmed: {reason}")

    async def _explain(self, row: ModelRow, reason: str) -> None:
        if row.reason != reason and row.wanted != row.current:
            await asyncio.to_thread(self._catalog.explain_model, row.name, reason)
