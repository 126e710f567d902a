"""A registrar over a real catalogue, store and repository, with the generator's and the workers' parts played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infaas_controller.register.registrar import Registrar

from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.domain.build import BuildProgress, BuildResult
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import BuildId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.task import Model, Task
from infaas.domain.variant import Variant
from infaas.errors import UnavailableError
from infaas.repository.local import LocalRepository
from infaas.rpc.codec import decode, encode
from infaas.settings import Settings
from infaas.store.base import Kind, MetadataStore
from infaas.store.redis import RedisStore
from infaas.testing.builders import a_variant, a_worker, an_instance

MakeModel = Callable[..., Path]
MakeData = Callable[..., Path]
Register = Callable[..., Any]


@dataclass
class Fleet:
    """A service whose view a test writes: the store's records, and one worker that loads what it is asked to."""

    view: ClusterView = field(default_factory=ClusterView)
    asked: list[VariantName] = field(default_factory=list)
    unloaded: list[VariantName] = field(default_factory=list)
    refusal: UnavailableError | None = None

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        self.asked.append(variant)
        if self.refusal is not None:
            raise self.refusal
        return worker or WorkerId("w1")

    def unload(self, variant: VariantName) -> int:
        self.unloaded.append(variant)
        return 1

    async def see(self, store: MetadataStore, **states: InstanceState) -> None:
        """Take the store's records into the view; `states` are instances by variant, with '.' written as '_'."""
        records = (await store.list((Kind.TASK, Kind.MODEL, Kind.VARIANT))).records
        instances = [
            an_instance(f"i{n}", variant=name.replace("__", "."), state=state)
            for n, (name, state) in enumerate(states.items())
        ]
        self.view = ClusterView(
            tasks={t.name: t for r in records if r.kind is Kind.TASK for t in [decode(r.value, Task)]},
            models={m.name: m for r in records if r.kind is Kind.MODEL for m in [decode(r.value, Model)]},
            variants={v.name: v for r in records if r.kind is Kind.VARIANT for v in [decode(r.value, Variant)]},
            workers={WorkerId("w1"): a_worker("w1", instances=instances)},
        )


@dataclass
class House:
    registrar: Registrar
    catalog: Catalog
    store: RedisStore
    fleet: Fleet
    settings: Settings
    repository: LocalRepository

    def again(self, **change: Any) -> Registrar:
        """A new registrar after a crash of the old one."""
        parts = {"catalog": self.catalog, "store": self.store, "inspector": None, **change}
        self.registrar = Registrar(
            parts["catalog"], parts["store"], self.repository, self.fleet, self.settings, SystemClock(),
            inspector=parts["inspector"],
        )  # fmt: skip
        return self.registrar

    async def turn(self) -> None:
        """One turn of both loops, the view following the store."""
        self.registrar._note_news()
        await self.registrar.step_results()
        await self.registrar.step_refill()
        await self.fleet.see(self.store)

    async def record(self, kind: Kind, key: str) -> bytes | None:
        found = await self.store.get(kind, key)
        return None if found is None else found.value

    async def model(self, name: str = "net") -> Model | None:
        value = await self.record(Kind.MODEL, name)
        return None if value is None else decode(value, Model)

    async def build(self, version: int = 1, *recipes: str, outcome: str = "made", accuracy: float = 0.9) -> None:
        """What a generator leaves in the store."""
        ident = BuildId(f"net@{version}")
        for recipe in recipes or ("fp32",):
            variant = replace(
                a_variant(f"net.v{version}.{recipe}", model="net", version=version, accuracy=accuracy), recipe=recipe
            )
            result = BuildResult(ident, recipe, variant if outcome == "made" else None, outcome, "")
            progress = BuildProgress(ident, recipe, "done", 1.0)
            await self.store.put(Kind.PROGRESS, f"{ident}/{recipe}", encode(progress))
            await self.store.put(Kind.RESULT, f"{ident}/{recipe}", encode(result))
        end = BuildResult(ident, "*", None, outcome, "" if outcome == "made" else "every recipe failed")
        await self.store.put(Kind.RESULT, f"{ident}/*", encode(end))


async def serve(house: House, register: Register) -> None:
    """Version 1 registered, built, published and switched to."""
    await register()
    await house.turn()
    await house.build(1)
    for _ in range(3):
        await house.turn()
    model = await house.model()
    assert model is not None
    assert model.current == 1
