"""What a controller says of the parts it depends on."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from infaas_controller.journal import Journal
from infaas_controller.peers import Peers
from infaas_controller.system import LOST, READ_ONLY, UP, SystemWatch

from infaas.catalog import schema
from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.domain.cluster import ControllerRecord
from infaas.domain.ids import ControllerId
from infaas.errors import UnavailableError
from infaas.store.leader import Leadership
from infaas.store.memory import MemoryStore
from infaas.store.view import ViewKeeper
from infaas.tokens import Tokens

OWN = ControllerRecord(ControllerId("c-1"), "http://127.0.0.1:1")


class NoWorkers:
    def documents(self) -> tuple[()]:
        return ()


@dataclass
class House:
    watch: SystemWatch
    catalog: Catalog
    peers: Peers
    keeper: ViewKeeper
    store: MemoryStore


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.1)
    clock = SystemClock()
    store = MemoryStore(clock)
    catalog = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    keeper = ViewKeeper(store, clock)
    peers = Peers(store, OWN, Tokens.of(None))
    leadership = Leadership(store, "controller", OWN.id, 5.0, clock)
    journal = Journal(catalog, sample=1.0)
    watch = SystemWatch(
        OWN.id, catalog, keeper, peers, leadership, journal, NoWorkers(), lambda: True, clock
    )  # fmt: skip
    yield House(watch, catalog, peers, keeper, store)
    await store.close()
    catalog.close()


async def test_a_store_that_was_never_heard_of_is_lost_and_up_once_it_was(house: House) -> None:
    assert house.watch.store().state == LOST
    assert house.watch.store().age_s is None
    task = asyncio.create_task(house.keeper.run(), name="view")
    async with asyncio.timeout(10):
        await house.keeper.wait_synced()
    assert house.watch.store().state == UP
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_heartbeat_that_is_refused_makes_the_store_read_only(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.create_task(house.keeper.run(), name="view")
    async with asyncio.timeout(10):
        await house.keeper.wait_synced()

    async def refuse(*_: object, **__: object) -> int:
        raise UnavailableError("READONLY")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "put", refuse)
        with pytest.raises(UnavailableError):
            await house.peers.announce()
    assert (house.watch.store().state, house.watch.store().reason) == (READ_ONLY, "READONLY")
    await house.peers.announce()
    assert house.watch.store().state == UP
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_catalogue_that_takes_no_writes_is_read_only_until_it_proves_otherwise(
    house: House, tmp_path: Path
) -> None:
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(house.catalog.prove_writable)
    await house.watch.look()
    assert house.watch.document().catalogue.state == READ_ONLY
    assert "locked" in house.watch.document().catalogue.reason
    assert house.watch.words()["catalogue"] == READ_ONLY
    holder.close()
    await house.watch.look()
    assert house.watch.document().catalogue.state == UP
    assert house.watch.document().catalogue.reason == ""


async def test_a_catalogue_that_cannot_be_read_is_lost(house: House) -> None:
    schema.migrate(house.catalog.engine, "base")
    await house.watch.look()
    assert house.watch.catalogue().state == LOST
    schema.migrate(house.catalog.engine)
    await house.watch.look()
    assert house.watch.catalogue().state == UP
