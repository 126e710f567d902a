"""Artifacts that nothing names go; what is named, new or still on its way stays."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from infaas_controller.register.collection import Collector, is_on, objection
from registrar_house import House, Register, serve

from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.domain.build import BuildResult
from infaas.domain.ids import BuildId, Digest
from infaas.repository.base import UNKNOWN, Collected
from infaas.repository.local import LocalRepository
from infaas.rpc.codec import encode
from infaas.settings import Settings
from infaas.store.base import Kind, Lease
from infaas.store.memory import MemoryStore
from infaas.testing.builders import a_variant
from infaas.testing.clock import ManualClock

LEASE = Lease("controller", "me", 1, 5.0)


def path_of(repository: LocalRepository, digest: Digest) -> Path:
    return repository.root / digest[:2] / digest[2:]


def age(repository: LocalRepository, *digests: Digest, days: float = 2.0) -> None:
    """As if they had been stored so long ago; all of them when none are named."""
    then = time.time() - 86_400 * days
    for path in [path_of(repository, one) for one in digests] or repository.root.glob("??/*"):
        os.utime(path, (then, then))


def collector_of(house: House, lease: Lease | None = LEASE) -> Collector:
    return Collector(house.catalog, house.store, house.repository, house.settings, SystemClock(), lambda: lease)


async def test_only_what_nothing_names_and_is_old_goes(house: House, register: Register) -> None:
    await serve(house, register)
    version = house.catalog.version("net", 1)
    assert version is not None
    named = {version.original, version.artifact, version.evaluation}
    orphan, fresh = house.repository.put_bytes(b"left by a crash"), house.repository.put_bytes(b"on its way")
    age(house.repository)
    age(house.repository, fresh, days=0.5)
    litter = house.repository.root / "tmp" / "killed"
    litter.write_bytes(b"half")
    os.utime(litter, (0, 0))
    assert await collector_of(house).step() == Collected((orphan,), 15)
    assert not house.repository.has(orphan)
    assert not litter.exists()
    assert all(house.repository.has(one) for one in [*named, fresh] if one is not None)
    assert await collector_of(house).step() == Collected()


async def test_what_a_waiting_result_names_stays(house: House, register: Register) -> None:
    await serve(house, register)
    model, samples = house.repository.put_bytes(b"a variant"), house.repository.put_bytes(b"its samples")
    made = a_variant("net.v1.fp32", artifact=model)
    assert made.profile is not None
    made = replace(made, profile=replace(made.profile, samples=samples))
    build = BuildId("net@1")
    await house.store.put(Kind.RESULT, f"{build}/fp32", encode(BuildResult(build, "fp32", made, "made", "")))
    age(house.repository)
    assert await collector_of(house).step() == Collected()
    await house.store.delete(Kind.RESULT, f"{build}/fp32")
    assert set((await collector_of(house).step() or Collected()).digests) == {model, samples}


async def test_an_empty_catalogue_deletes_nothing(house: House) -> None:
    digest = house.repository.put_bytes(b"of another catalogue")
    age(house.repository)
    assert await collector_of(house).step() is None
    assert house.repository.has(digest)


async def test_who_does_not_lead_deletes_nothing(house: House, register: Register) -> None:
    await serve(house, register)
    digest = house.repository.put_bytes(b"left")
    age(house.repository)
    assert await collector_of(house, lease=None).step() is None
    assert house.repository.has(digest)


async def test_a_leadership_that_ended_while_it_looked_deletes_nothing(house: House, register: Register) -> None:
    await serve(house, register)
    digest = house.repository.put_bytes(b"left")
    age(house.repository)
    held = [LEASE]
    lease = lambda: held.pop() if held else None  # noqa: E731
    collector = Collector(house.catalog, house.store, house.repository, house.settings, SystemClock(), lease)
    assert await collector.step() is None
    assert house.repository.has(digest)


async def test_the_files_of_another_catalogue_in_the_same_folder_are_nobodys_to_delete(
    house: House, register: Register, tmp_path: Path
) -> None:
    """One state folder, first with a database of its own, then with one on a server."""
    await serve(house, register)
    version = house.catalog.version("net", 1)
    assert version is not None
    second = Catalog.open(f"sqlite:///{tmp_path}/second.db")
    try:
        house.again(catalog=second)
        await register(2.0)
        age(house.repository)
        store = MemoryStore(ManualClock())
        for settings in (house.settings, wanting(house.settings)):
            for catalog in (second, house.catalog):
                collector = Collector(catalog, store, house.repository, settings, SystemClock(), lambda: LEASE)
                assert await collector.step() is None
    finally:
        second.close()
    assert house.repository.has(version.artifact)


async def test_what_was_there_before_anybody_left_a_mark_is_deleted_only_if_the_settings_say_so(
    house: House, register: Register
) -> None:
    digest = house.repository.put_bytes(b"from before there were marks")
    await serve(house, register)
    age(house.repository)
    assert await collector_of(house).step() is None
    house.settings = wanting(house.settings)
    assert await collector_of(house).step() == Collected((digest,), 28)


def wanting(settings: Settings) -> Settings:
    return settings.model_copy(update={"repository": settings.repository.model_copy(update={"collect": True})})


@pytest.mark.parametrize(
    ("collect", "users", "words"),
    [
        (None, {"own"}, None),
        (None, {"own", UNKNOWN}, "repository.collect: true"),
        (True, {"own", UNKNOWN}, None),
        (True, {"own", "other"}, "catalogue other uses it, too"),
        (True, set(), "left no mark"),
    ],
)
def test_a_repository_is_ones_own_only_when_nobody_else_left_a_mark(
    collect: bool | None, users: set[str], words: str | None
) -> None:
    found = objection(Settings.model_validate({"repository": {"collect": collect}}), "own", frozenset(users))
    assert (found is None) if words is None else (found is not None and words in found)


def test_storing_again_makes_a_file_new(tmp_path: Path) -> None:
    repository, other = LocalRepository(tmp_path), LocalRepository(tmp_path)
    digest = repository.put_bytes(b"again")
    age(repository, digest)
    assert other.put_bytes(b"again") == digest
    assert repository.collect(frozenset(), time.time() - 3600) == Collected()
    assert repository.fetch(digest).read_bytes() == b"again"


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ({}, True),
        ({"url": "/srv/shared"}, False),
        ({"url": "/srv/shared", "collect": True}, True),
        ({"collect": False}, False),
    ],
)
def test_a_repository_that_others_may_use_is_left_alone_unless_the_settings_say_so(
    repository: dict[str, object], expected: bool
) -> None:
    assert is_on(Settings.model_validate({"repository": repository})) is expected
