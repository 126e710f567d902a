"""Copies what generators leave in the store into the catalogue. Idempotent: everything may come twice.

A build's states are written here: BUILDING at the first sign of work, READY or FAILED when the result of recipe `*`
says that all others are in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import ProfilingRow, VersionRow
from infaas.clock import Clock
from infaas.domain.build import BuildResult, ProfilingState, profiling_build
from infaas.domain.lifecycle import BuildState
from infaas.errors import InvalidError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.store.base import Kind, Record
from infaas_controller.register.publication import OPEN

ALL_RECIPES = "*"
_log = get_logger(__name__)


class ResultKeeper:
    """Owned by the registrar's loop."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._seen: set[tuple[str, int]] = set()
        """Result records, by key and version, that the catalogue has: not worth another transaction."""

    async def absorb(self, records: Sequence[Record]) -> bool:
        """Take in PROGRESS and RESULT records; True when something in the catalogue changed."""
        by_build: dict[str, list[Record]] = {}
        for record in records:
            if record.kind in (Kind.PROGRESS, Kind.RESULT):
                by_build.setdefault(record.key.rpartition("/")[0], []).append(record)
        self._seen &= {(record.key, record.version) for record in records}
        if not by_build:
            return False
        return await asyncio.to_thread(self._absorb, by_build)

    def _absorb(self, by_build: Mapping[str, Sequence[Record]]) -> bool:
        open_versions = [v for v in self._catalog.versions() if v.state in OPEN and v.id in by_build]
        has_changed = False
        for version in open_versions:
            if version.state is BuildState.RECEIVED:
                now = self._clock.wall()
                self._catalog.transition(version.id, BuildState.RECEIVED, BuildState.BUILDING, "", at=now)
                has_changed = True
            has_changed |= self._absorb_results(version, by_build[version.id])
        for row in self._catalog.open_profilings():
            if records := by_build.get(profiling_build(row.id)):
                has_changed |= self._absorb_profiling(row, records)
        return has_changed

    def _absorb_profiling(self, row: ProfilingRow, records: Sequence[Record]) -> bool:
        """A profiling has one result, which ends it."""
        if row.state is ProfilingState.PENDING:
            self._catalog.start_profiling(row.id, at=self._clock.wall())
        for record in records:
            result = self._new_result(record)
            if result is None:
                continue
            profile = result.variant.profile if result.variant is not None else None
            reason = result.reason if profile is not None or result.reason else "nothing was measured"
            is_news = self._catalog.finish_profiling(row.id, profile, reason, at=self._clock.wall())
            self._seen.add((record.key, record.version))
            _log.info("variant profiled", variant=row.variant, profiling=row.id, outcome=result.outcome, reason=reason)
            return is_news
        return False

    def _absorb_results(self, version: VersionRow, records: Sequence[Record]) -> bool:
        has_changed = False
        end: BuildResult | None = None
        for record in records:
            result = self._new_result(record)
            if result is None:
                continue
            if result.recipe == ALL_RECIPES:
                end = result
                continue
            has_changed |= self._catalog.record_result(version.id, result, at=self._clock.wall())
            self._seen.add((record.key, record.version))
        if end is not None:
            self._finish(version, end)
            has_changed = True
        return has_changed

    def _new_result(self, record: Record) -> BuildResult | None:
        """None for what is no result, was seen before, or cannot be read (which is logged once)."""
        if record.kind is not Kind.RESULT or (record.key, record.version) in self._seen:
            return None
        try:
            return decode(record.value, BuildResult)
        except InvalidError as error:
            _log.error("a build's result cannot be read", key=record.key, reason=error.text)
            self._seen.add((record.key, record.version))
            return None

    def _finish(self, version: VersionRow, end: BuildResult) -> None:
        made = [result.variant for result in self._catalog.results(version.id) if result.variant is not None]
        if made:
            state, reason = BuildState.READY, ""
        else:
            state, reason = BuildState.FAILED, end.reason or "no recipe made a variant"
        self._catalog.finish(version.id, state, reason, at=self._clock.wall())
        _log.info("build finished", version=version.id, state=state, variants=len(made), reason=reason)
