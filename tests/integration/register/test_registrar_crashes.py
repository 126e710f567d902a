"""A registrar that dies at any of its writes: the next one completes what it began."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from infaas_controller.register.inspect import inspect
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest
from infaas_controller.register.inspector import Inspector
from infaas_controller.register.options import RegistrationOptions, Upload
from registrar_house import House, MakeData, MakeModel

from infaas.catalog.catalog import Catalog
from infaas.domain.task import ModelState
from infaas.store.base import Kind
from infaas.store.redis import RedisStore


class DirectInspector(Inspector):
    """The same check in a thread: where many registrars die, what a subprocess costs is not the question."""

    async def inspect(self, request: InspectionRequest) -> InspectionAnswer:
        return await asyncio.to_thread(inspect, request)


class Crashed(Exception):
    """The process died here."""


class Fuse:
    """Lets a number of calls through, then dies, before or after doing the last of them."""

    def __init__(self, after: int, *, is_late: bool) -> None:
        self.left = after
        self.is_late = is_late

    @property
    def is_blown(self) -> bool:
        return self.left <= 0


class DyingCatalog:
    """The real catalogue, dying at its n-th write."""

    WRITES = frozenset({"register", "transition", "finish", "record_result", "switch", "explain_model"})

    def __init__(self, catalog: Catalog, fuse: Fuse) -> None:
        self._real, self._fuse = catalog, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in self.WRITES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.left -= 1
            if self._fuse.is_blown and not self._fuse.is_late:
                raise Crashed
            done = found(*args, **kwargs)
            if self._fuse.is_blown:
                raise Crashed
            return done

        return call


class DyingStore:
    """The real store, dying at its n-th write."""

    def __init__(self, store: RedisStore, fuse: Fuse) -> None:
        self._real, self._fuse = store, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in {"put", "delete"}:
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.left -= 1
            if self._fuse.is_blown and not self._fuse.is_late:
                raise Crashed
            done = await found(*args, **kwargs)
            if self._fuse.is_blown:
                raise Crashed
            return done

        return call


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("step", range(1, 13))
async def test_a_registrar_that_dies_at_any_write_is_completed_by_the_next(
    house: House, model_file: MakeModel, data_file: MakeData, step: int, is_late: bool
) -> None:
    fuse = Fuse(step, is_late=is_late)
    checks = DirectInspector()
    dying = house.again(
        catalog=DyingCatalog(house.catalog, fuse), store=DyingStore(house.store, fuse), inspector=checks
    )  # fmt: skip
    upload = Upload(model_file(), "net.onnx", data_file())
    options = RegistrationOptions("digits", name="net")
    has_crashed = False
    try:
        await dying.register(upload, options)
        await dying.step_refill()
        await house.build(1, "fp32", "int8")
        for _ in range(4):
            dying._note_news()
            await dying.step_results()
            await dying.step_refill()
            await house.fleet.see(house.store)
    except Crashed:
        has_crashed = True
    assert has_crashed == fuse.is_blown

    house.again(inspector=checks)
    document = await house.registrar.register(upload, options)
    assert document.version == 1
    await house.turn()
    if await house.record(Kind.BUILD, "net@1") is not None:
        await house.build(1, "fp32", "int8")
    for _ in range(4):
        await house.turn()
    model = await house.model()
    assert model is not None
    assert (model.current, model.state, model.reason) == (1, ModelState.READY, "")
    versions = (await house.registrar.describe_model("net")).versions
    assert [(v.version, v.state, v.is_current, v.variants) for v in versions] == [
        (1, "READY", True, ("net.v1.fp32", "net.v1.int8"))
    ]
    assert len(house.catalog.profiles("net.v1.fp32")) == 1
    assert (await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))).records == ()
    assert len((await house.store.list((Kind.VARIANT,))).records) == 2
