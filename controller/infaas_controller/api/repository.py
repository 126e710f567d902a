"""Triton's model repository extension over the query path: what is registered, and loading and unloading by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from infaas.clock import Clock
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.task import ModelState
from infaas.errors import InfaasError, UnavailableError, UnsupportedError
from infaas.rpc.requirements import Scalar
from infaas.store.view import require_filled
from infaas_controller.api.documents import Handle, Index, resolve, state_of, variant_to_load
from infaas_controller.ports import QueryService

LOOK_EVERY_S = 0.02
"""How often a waiting load or unload looks at the view: it has no event, and nobody waits for it but its caller."""
LOAD_LIMIT_S = 120.0
UNLOAD_LIMIT_S = 5.0


class Repository:
    """Answers from the view; the index over it is kept until the view is another one."""

    def __init__(self, service: QueryService, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._index: Index | None = None

    def index(self) -> Index:
        """Raises UnavailableError before the store was read."""
        view = self._service.view
        require_filled(view)
        if self._index is None or self._index.view is not view:
            self._index = Index(view)
        return self._index

    def is_ready(self, name: str, version: int | None) -> tuple[bool, str]:
        """Whether a name can be served now, and why not. Raises NotFoundError."""
        index = self.index()
        state, reason = state_of(index, resolve(index, name, version))
        return state is ModelState.READY, f"model {name!r} is {state.value}: {reason}" if reason else ""

    async def load(self, name: str, parameters: Mapping[str, Scalar | bytes]) -> None:
        """Returns once an instance is READY (as Triton does), at once if one is already.

        Raises InfaasError whose text starts with `failed to load`, the words that Triton's clients look for.
        """
        for key in parameters:
            if key == "config" or key.startswith("file:"):
                raise UnsupportedError(
                    f"failed to load {name!r}: parameter {key!r} is not taken; register a model with POST /v1/models"
                )
        try:
            handle = resolve(self.index(), name)
            if state_of(self.index(), handle)[0] is ModelState.READY:
                return
            await self._load_variant(handle)
        except InfaasError as error:
            if not error.text.startswith("failed to load"):
                error.text = f"failed to load {name!r}, {error.text}"
            raise

    async def unload(self, name: str) -> None:
        """Drain every instance behind a name. Returns once none of them takes queries. Raises NotFoundError."""
        index = self.index()
        handle = resolve(index, name)
        chosen = {
            variant.name
            for version in handle.versions
            for variant in resolve(index, name, version).variants
            if variant.name in index.instances
        }

        def is_over() -> bool:
            """Told again: a worker may have been loading another when it was told first."""
            ready = {variant for variant in chosen if self._instances({variant}, InstanceState.READY)}
            for variant in sorted(ready):
                self._service.unload(variant)
            return not ready

        for variant in sorted(chosen):
            self._service.unload(variant)
        if not await self._until(is_over, UNLOAD_LIMIT_S):
            raise UnavailableError(f"{name!r} is still draining after {UNLOAD_LIMIT_S:.0f} s")

    async def _load_variant(self, handle: Handle) -> None:
        variant = variant_to_load(handle).name
        failed_before = self._instances({variant}, InstanceState.FAILED)
        worker = self._service.load(variant)

        def is_settled() -> bool:
            return bool(
                self._instances({variant}, InstanceState.READY)
                or self._instances({variant}, InstanceState.FAILED).keys() - failed_before.keys()
            )

        await self._until(is_settled, LOAD_LIMIT_S)
        if self._instances({variant}, InstanceState.READY):
            return
        failed = self._instances({variant}, InstanceState.FAILED)
        reasons = [reason for id_, reason in failed.items() if id_ not in failed_before]
        why = reasons[0] if reasons else f"not ready after {LOAD_LIMIT_S:.0f} s"
        raise UnavailableError(f"failed to load {handle.name!r}: variant {variant!r} on worker {worker!r}: {why}")

    def _instances(self, variants: set[VariantName], state: InstanceState) -> dict[InstanceId, str]:
        return {
            instance.id: instance.reason
            for worker in self._service.view.workers.values()
            for instance in worker.instances.values()
            if instance.variant in variants and instance.state is state
        }

    async def _until(self, is_true: Callable[[], bool], limit_s: float) -> bool:
        deadline = self._clock.now() + limit_s
        while not is_true():
            if self._clock.now() >= deadline:
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True
