"""A worker that lives in the controller's process: how it is found, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from infaas_worker.inline import Inline
from infaas_worker.main import main
from infaas_worker.registration import refuse_namesake

from infaas.clock import SystemClock
from infaas.domain.cluster import WorkerRecord
from infaas.errors import ConflictError, SettingsError, UnavailableError
from infaas.inline import inline_worker
from infaas.rpc.codec import encode
from infaas.settings import Settings, load_settings
from infaas.store.base import Kind, Record
from infaas.store.memory import MemoryStore
from infaas.testing.builders import a_worker
from infaas.testing.clock import ManualClock
from infaas.testing.hop import Heard


def settings(folder: Path, **worker: object) -> Settings:
    return load_settings(environ={}, overrides={"state_dir": str(folder), "worker": {"inline": True, **worker}})


def test_it_is_found_by_its_entry_point_and_says_where_others_reach_it(tmp_path: Path) -> None:
    found = inline_worker(settings(tmp_path, id="w1"), SystemClock())
    assert isinstance(found, Inline)
    assert found.address == f"unix:{tmp_path}/run/worker-w1.sock"
    elsewhere = inline_worker(settings(tmp_path, listen="127.0.0.1:9000", advertise="host:9000"), SystemClock())
    assert elsewhere.address == "host:9000"


def test_nobody_is_met_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        inline_worker(settings(tmp_path), SystemClock()).meet(Heard())


def test_it_asks_for_no_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cores are wanted"):
        inline_worker(settings(tmp_path, cores=10_000), SystemClock())


def test_a_worker_of_its_own_is_not_started_with_the_settings_of_one_that_is_inline(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no worker beside it"):
        main(settings(tmp_path))


def a_record(host: str = "h1", address: str = "unix:/run/w1.sock") -> WorkerRecord:
    return a_worker("w1", host=host, address=address)


async def stored(record: WorkerRecord | None) -> MemoryStore:
    store = MemoryStore(ManualClock())
    if record is not None:
        await store.put(Kind.WORKER, record.id, encode(record))
    return store


@pytest.mark.parametrize("before", [None, a_record()])
async def test_its_own_record_of_the_life_before_is_in_nobodys_way(before: WorkerRecord | None) -> None:
    await refuse_namesake(await stored(before), a_record())


@pytest.mark.parametrize("other", [a_record(host="h2"), a_record(address="h1:9000")])
async def test_a_worker_elsewhere_of_the_same_name_keeps_it(other: WorkerRecord) -> None:
    with pytest.raises(ConflictError, match=r"a worker .w1. lives at .* already"):
        await refuse_namesake(await stored(other), a_record())


class Unreachable(MemoryStore):
    async def get(self, kind: Kind, key: str) -> Record | None:
        raise UnavailableError("gone")


async def test_without_the_store_it_goes_on() -> None:
    await refuse_namesake(Unreachable(ManualClock()), a_record())
