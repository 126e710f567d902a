"""Writes what a build has come to into the store, under the build's lease.

Progress is for people and is thinned out; results are for the registrar, and each is written exactly once: a result
that exists is never overwritten, and a write under a lost lease is refused by the store.
"""

from __future__ import annotations

import asyncio

from infaas.clock import Clock
from infaas.domain.build import BuildOrder, BuildProgress, BuildResult
from infaas.errors import PreconditionError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind, Lease, MetadataStore

_log = get_logger(__name__)
WHOLE = "*"
"""The recipe of the result that ends a build."""
PROGRESS_PERIOD_S = 0.4
FIRST_WAIT_S = 0.1


class LeaseLostError(Exception):
    """Another generator has the build, or may have it; stop at once."""


def result_key(build: str, recipe: str) -> str:
    return f"{build}/{recipe}"


class Publisher:
    def __init__(self, store: MetadataStore, order: BuildOrder, lease: Lease, clock: Clock) -> None:
        self._store = store
        self._order = order
        self._lease = lease
        self._clock = clock
        self._last_stage: dict[str, str] = {}
        self._last_at = float("-inf")

    async def results(self) -> dict[str, BuildResult]:
        """By recipe, what is already there."""
        snapshot = await self._store.list([Kind.RESULT])
        prefix = result_key(self._order.id, "")
        found = [decode(r.value, BuildResult) for r in snapshot.records if r.key.startswith(prefix)]
        return {result.recipe: result for result in found}

    async def progress(self, recipe: str, stage: str, fraction: float, detail: str = "") -> None:
        """A new stage is written at once, more of the same stage a few times a second at most.

        Raises LeaseLostError. A store that is away costs the display one step, not the build.
        """
        now = self._clock.now()
        is_same = self._last_stage.get(recipe) == stage
        if is_same and now - self._last_at < PROGRESS_PERIOD_S:
            return
        value = BuildProgress(self._order.id, recipe, stage, round(fraction, 3), detail, at=self._clock.wall())
        try:
            await self._store.put(Kind.PROGRESS, result_key(self._order.id, recipe), encode(value), lease=self._lease)
        except PreconditionError as error:
            raise LeaseLostError(error.text) from error
        except UnavailableError as error:
            _log.debug("progress not shown", build=self._order.id, recipe=recipe, reason=error.text)
            return
        self._last_stage[recipe] = stage
        self._last_at = now

    async def result(self, result: BuildResult) -> None:
        """Raises LeaseLostError, or UnavailableError while the store is away."""
        key = result_key(self._order.id, result.recipe)
        try:
            await self._put_once(key, encode(result))
        except PreconditionError as error:
            if not await self._store.renew(self._lease):
                raise LeaseLostError(error.text) from error
            if await self._store.get(Kind.RESULT, key) is None:
                raise LeaseLostError(f"the result {key} was refused: {error.text}") from error
            _log.info("result was there already", build=self._order.id, recipe=result.recipe)

    async def _put_once(self, key: str, value: bytes) -> None:
        """A store that is away is asked again for as long as the lease may still be ours: minutes of measuring are
        not thrown away for a second's outage. Repeating is harmless, because the key must not exist yet."""
        until = self._clock.now() + self._lease.ttl_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                await self._store.put(Kind.RESULT, key, value, expect=0, lease=self._lease)
            except UnavailableError as error:
                if self._clock.now() + wait_s >= until:
                    raise
                _log.warning("store away", result=key, reason=error.text, seconds=wait_s)
                await asyncio.sleep(wait_s)
                wait_s *= 2
            else:
                return
