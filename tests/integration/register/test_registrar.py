"""The registrar over a real catalogue, store, repository and inspecting subprocess; the generator's part is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infaas_controller.register.inspect import inspect
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest
from infaas_controller.register.inspector import Inspector
from infaas_controller.register.options import RegistrationOptions, TaskChange, Upload
from infaas_controller.register.registrar import Registrar

from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.control import RegistrationDocument
from infaas.domain.build import BuildOrder, BuildProgress, BuildResult
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import BuildId, VariantName, WorkerId, fresh_id
from infaas.domain.lifecycle import InstanceState
from infaas.domain.task import Model, ModelState, Task
from infaas.domain.variant import Variant
from infaas.errors import ConflictError, InvalidError, NotFoundError, PreconditionError, TooLargeError, UnavailableError
from infaas.repository.local import LocalRepository
from infaas.rpc.codec import decode, encode
from infaas.settings import Settings
from infaas.store.base import Kind, Lease, MetadataStore
from infaas.store.redis import RedisStore
from infaas.testing.builders import a_task, a_variant, a_worker, an_instance

MakeModel = Callable[..., Path]
MakeData = Callable[..., Path]


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


@pytest.fixture
async def house(tmp_path: Path, redis_store: RedisStore) -> AsyncIterator[House]:
    settings = Settings(state_dir=tmp_path / "state")
    catalog = Catalog.open(settings.database_url)
    repository = LocalRepository(tmp_path / "artifacts")
    fleet = Fleet()
    registrar = Registrar(catalog, redis_store, repository, fleet, settings, SystemClock())
    yield House(registrar, catalog, redis_store, fleet, settings, repository)
    catalog.close()


Register = Callable[..., Any]


@pytest.fixture
def register(house: House, model_file: MakeModel, data_file: MakeData) -> Register:
    async def do(scale: float = 1.0, **options: Any) -> RegistrationDocument:
        # Each upload has files of its own, as each client's has: writing over one that is being read would be another.
        mark = fresh_id("upload")
        upload = Upload(model_file(f"{mark}.onnx", scale=scale), "net.onnx", data_file(f"{mark}.npz"))
        key = options.pop("key", None)
        said = RegistrationOptions(**{"task": "digits", "name": "net", **options})
        return await house.registrar.register(upload, said, idempotency_key=key)

    return do


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


async def test_a_registration_is_stored_written_and_ordered_to_be_built(house: House, register: Register) -> None:
    document = await register(labels={"team": "a"})
    assert (document.model, document.version, document.state) == ("net", 1, "RECEIVED")
    assert (document.is_new, document.created_task, document.location) == (True, True, "/v1/models/net/versions/1")
    await house.turn()
    order = decode(await house.record(Kind.BUILD, "net@1") or b"", BuildOrder)
    for digest in (order.artifact, order.original, order.evaluation):
        assert digest is not None
        assert house.repository.has(digest)
    assert decode(await house.record(Kind.TASK, "digits") or b"", Task).inputs[0].shape == (-1, 4)
    model = await house.model()
    assert model is not None
    assert (model.current, model.state, model.reason) == (None, ModelState.LOADING, "version 1 is being built")


async def test_variants_are_published_only_when_the_build_is_over(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, "fp32", "int8")
    await house.store.delete(Kind.RESULT, "net@1/*")
    await house.turn()
    assert (await house.store.list((Kind.VARIANT,))).records == ()
    assert (await house.registrar.describe_version("net", 1)).state == "BUILDING"
    await house.build(1, "fp32", "int8")
    await house.turn()
    await house.turn()
    found = sorted(r.key for r in (await house.store.list((Kind.VARIANT,))).records)
    assert found == ["net.v1.fp32", "net.v1.int8"]
    leftovers = (await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))).records
    assert leftovers == ()


async def test_the_first_version_serves_at_once_and_is_preloaded(house: House, register: Register) -> None:
    await serve(house, register)
    await house.turn()
    assert house.fleet.asked == ["net.v1.fp32"]


async def test_the_next_version_serves_only_when_it_is_warm(house: House, register: Register) -> None:
    await serve(house, register)
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_results()
    await register(2.0)
    await house.turn()
    await house.build(2)
    await house.turn()
    await house.turn()
    model = await house.model()
    assert model is not None
    assert (model.current, model.reason) == (1, "version 2 is being warmed")
    assert house.fleet.asked[-1] == "net.v2.fp32"
    await house.fleet.see(house.store, net__v2__fp32=InstanceState.LOADING)
    await house.registrar.step_results()
    assert (await house.registrar.describe_model("net")).current == 1
    await house.fleet.see(house.store, net__v2__fp32=InstanceState.READY)
    await house.registrar.step_results()
    await house.registrar.step_refill()
    model = await house.model()
    assert model is not None
    assert model.current == 2


async def test_why_a_version_is_not_warm_is_said(house: House, register: Register) -> None:
    await serve(house, register)
    await register(2.0)
    await house.turn()
    await house.build(2)
    await house.turn()
    house.fleet.refusal = UnavailableError("no worker has 50 MiB free")
    for _ in range(3):
        await house.turn()
    document = await house.registrar.describe_model("net")
    assert document.current == 1
    assert "no worker has 50 MiB free" in document.reason


async def test_rollback_warms_the_older_version_and_switches(house: House, register: Register) -> None:
    await test_the_next_version_serves_only_when_it_is_warm(house, register)
    document = await house.registrar.rollback("net")
    assert (document.current, document.reason) == (2, "version 1 is being warmed")
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_results()
    assert (await house.registrar.describe_model("net")).current == 1
    with pytest.raises(PreconditionError, match="no READY version before 1"):
        await house.registrar.rollback("net")
    with pytest.raises(NotFoundError):
        await house.registrar.rollback("net", 7)


async def test_a_failed_build_says_why_and_the_same_file_is_tried_again(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    document = await house.registrar.describe_version("net", 1)
    assert (document.state, document.reason) == ("FAILED", "every recipe failed")
    again = await register()
    assert (again.version, again.state, again.is_new) == (1, "RECEIVED", True)
    await house.turn()
    assert (await house.registrar.describe_version("net", 1)).state == "RECEIVED", "old results must not end it again"
    assert await house.record(Kind.BUILD, "net@1") is not None


async def test_clearing_leftovers_touches_no_build_that_began_meanwhile(house: House, register: Register) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    failed = house.catalog.version("net", 1)
    assert failed is not None
    await register()
    await house.turn()
    await house.build(1)
    before = (await house.store.list(tuple(Kind))).records
    assert any(record.kind is Kind.RESULT for record in before)
    # A second caller saw the version while it was FAILED, and comes late.
    await house.registrar._builds.clear(failed)
    assert (await house.store.list(tuple(Kind))).records == before


async def test_clearing_leftovers_spares_what_was_written_since_it_looked(
    house: House, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register()
    await house.turn()
    await house.build(1, outcome="failed")
    house.registrar._note_news()
    await house.registrar.step_results()
    failed = house.catalog.version("net", 1)
    assert failed is not None
    listed = await house.store.list((Kind.BUILD, Kind.PROGRESS, Kind.RESULT))
    await house.store.put(Kind.RESULT, "net@1/fp32", b"{}")

    async def earlier(_: object) -> object:
        return listed

    monkeypatch.setattr(house.store, "list", earlier)
    await house.registrar._builds.clear(failed)
    monkeypatch.undo()
    assert await house.record(Kind.RESULT, "net@1/fp32") == b"{}"
    assert await house.record(Kind.RESULT, "net@1/*") is None


async def test_unregistering_leaves_the_view_then_drains_and_the_file_revives_it(
    house: House, register: Register
) -> None:
    await serve(house, register)
    await house.registrar.unregister("net")
    await house.registrar.step_refill()
    assert (await house.store.list((Kind.MODEL, Kind.VARIANT))).records == ()
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_refill()
    assert house.fleet.unloaded == ["net.v1.fp32"]
    assert await house.registrar.list_models() == []
    assert (await house.registrar.describe_model("net")).reason == "unregistered"
    again = await register()
    assert (again.version, again.state, again.is_new) == (1, "READY", True)
    for _ in range(3):
        await house.turn()
    model = await house.model()
    assert model is not None
    assert model.current == 1
    assert await house.record(Kind.VARIANT, "net.v1.fp32") is not None


async def test_what_was_unregistered_in_the_middle_of_its_build_is_built_to_its_end_when_it_comes_back(
    house: House, register: Register
) -> None:
    await register()
    await house.turn()
    await house.build(1, "fp32")
    await house.store.delete(Kind.RESULT, "net@1/*")
    await house.turn()
    assert (await house.registrar.describe_version("net", 1)).variants == ("net.v1.fp32",)
    await house.registrar.unregister("net")
    await house.turn()
    assert await house.record(Kind.BUILD, "net@1") is None
    again = await register()
    assert (again.version, again.state) == (1, "RECEIVED")
    await house.turn()
    assert decode(await house.record(Kind.BUILD, "net@1") or b"", BuildOrder).done == ("fp32",)
    await house.build(1, "int8")
    for _ in range(3):
        await house.turn()
    assert (await house.registrar.describe_version("net", 1)).variants == ("net.v1.fp32", "net.v1.int8")
    model = await house.model()
    assert model is not None
    assert model.current == 1


async def test_a_disabled_variant_is_published_as_such_and_drains(house: House, register: Register) -> None:
    await serve(house, register)
    document = await house.registrar.disable_variant("net.v1.fp32", "too slow")
    assert (document.state, document.reason) == ("DISABLED", "too slow")
    await house.fleet.see(house.store, net__v1__fp32=InstanceState.READY)
    await house.registrar.step_refill()
    assert house.fleet.unloaded == ["net.v1.fp32"]
    assert decode(await house.record(Kind.VARIANT, "net.v1.fp32") or b"", Variant).state == "DISABLED"
    await house.registrar.enable_variant("net.v1.fp32")
    await house.registrar.step_refill()
    assert decode(await house.record(Kind.VARIANT, "net.v1.fp32") or b"", Variant).state == "READY"


async def test_an_emptied_store_is_filled_again_with_what_was_done(house: House, register: Register) -> None:
    await serve(house, register)
    await register(2.0)
    await house.turn()
    await house.build(2, "fp32")
    await house.store.delete(Kind.RESULT, "net@2/*")
    await house.turn()
    for record in (await house.store.list(tuple(Kind))).records:
        await house.store.delete(record.kind, record.key)
    house.registrar._compare_at = 0.0
    await house.registrar.step_refill()
    order = decode(await house.record(Kind.BUILD, "net@2") or b"", BuildOrder)
    assert order.done == ("fp32",)
    keys = {(r.kind, r.key) for r in (await house.store.list((Kind.TASK, Kind.MODEL, Kind.VARIANT))).records}
    assert keys == {(Kind.TASK, "digits"), (Kind.MODEL, "net"), (Kind.VARIANT, "net.v1.fp32")}


async def test_a_deposed_leader_writes_nothing(house: House, register: Register) -> None:
    lease = await house.store.acquire("leader", "old", 30.0)
    assert lease is not None
    house.registrar._lease = lambda: replace(lease, fence=lease.fence - 1)
    await register()
    with pytest.raises(PreconditionError):
        await house.registrar.step_refill()
    assert (await house.store.list((Kind.TASK, Kind.BUILD))).records == ()
    house.registrar._lease = lambda: None
    await house.registrar.step_refill()
    assert (await house.store.list((Kind.TASK, Kind.BUILD))).records == ()
    held: Lease = lease
    house.registrar._lease = lambda: held
    await house.registrar.step_refill()
    assert await house.record(Kind.BUILD, "net@1") is not None


async def test_the_same_file_twice_is_one_version_with_hints(house: House, register: Register) -> None:
    await register()
    again = await register()
    assert (again.version, again.is_new, again.created_task) == (1, False, False)
    assert (await register(2.0)).version == 2


async def test_two_clients_at_the_same_moment_make_one_version(house: House, register: Register) -> None:
    documents = await asyncio.gather(register(), register(), register())
    assert [d.version for d in documents] == [1, 1, 1]
    assert sorted(d.is_new for d in documents) == [False, False, True]
    assert len((await house.registrar.describe_model("net")).versions) == 1


async def test_two_new_models_of_one_new_task_agree_on_it(
    house: House, model_file: MakeModel, data_file: MakeData
) -> None:
    data = data_file()
    narrow = Upload(model_file("a.onnx"), "a.onnx", data)
    both = Upload(model_file("b.onnx", outputs=("label",)), "b.onnx", data)
    options = RegistrationOptions("digits")
    found = await asyncio.gather(
        house.registrar.register(narrow, options), house.registrar.register(both, options), return_exceptions=True
    )
    made = [d for d in found if isinstance(d, RegistrationDocument)]
    assert sum(d.created_task for d in made) == 1
    task = (await house.registrar.describe_task("digits")).task
    if task.outputs[0].name == "label":
        assert len(made) == 2, "a label can be made from scores"
    else:
        (refused,) = [e for e in found if isinstance(e, InvalidError)]
        assert "lacks output 'scores'" in refused.text


async def test_an_idempotency_key_answers_as_before_and_is_no_ones_else(house: House, register: Register) -> None:
    first = await register(key="k1")
    assert await register(key="k1") == first
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        await register(2.0, key="k1")


@pytest.mark.parametrize(
    ("filename", "options", "words"),
    [
        ("net.onnx", {"task": "../etc"}, "task '../etc' must match"),
        ("net.onnx", {"name": "a/b"}, "model name 'a/b' must match"),
        ("../../evil.onnx", {"name": None}, "file name '../../evil.onnx' is a path"),
        ("..onnx", {"name": None}, "must match"),
        ("net.onnx", {"name": "digits"}, "cannot both be called 'digits'"),
        ("net.onnx", {"metric": "os.system"}, "unknown metric 'os.system'; known are accuracy, f1, mae, rmse"),
        ("net.onnx", {"accuracy": 1.5}, "accuracy 1.5 must be between 0 and 1"),
        ("net.onnx", {"accuracy": float("nan")}, "must be between 0 and 1"),
        ("net.onnx", {"labels": {"a b": "c"}}, "label 'a b' must match"),
        ("net.onnx", {"mapping": {"x": ""}}, "--map x=: both names must be given"),
    ],
)
async def test_options_that_are_wrong_are_refused_in_words(
    house: House, model_file: MakeModel, data_file: MakeData, filename: str, options: dict[str, Any], words: str
) -> None:
    said = RegistrationOptions(**{"task": "digits", "name": "net", **options})
    with pytest.raises(InvalidError) as caught:
        await house.registrar.register(Upload(model_file(), filename, data_file()), said)
    assert any(words in problem for problem in caught.value.problems), caught.value.problems
    assert house.catalog.tasks() == []


async def test_neither_data_nor_accuracy_is_refused_and_declared_accuracy_is_kept(
    house: House, model_file: MakeModel
) -> None:
    upload = Upload(model_file(), "net.onnx")
    with pytest.raises(InvalidError, match="neither evaluation data nor an accuracy"):
        await house.registrar.register(upload, RegistrationOptions("digits"))
    await house.registrar.register(upload, RegistrationOptions("digits", accuracy=0.8))
    assert (await house.registrar.describe_version("net", 1)).declared_accuracy == 0.8


async def test_problems_of_options_and_files_come_together(house: House, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InvalidError) as caught:
        await house.registrar.register(Upload(path, "bad.onnx"), RegistrationOptions("a b", metric="nope"))
    text = caught.value.text
    for words in ("problems: ", "task 'a b'", "unknown metric", "neither evaluation", "not an ONNX"):
        assert words in text


async def test_names_taken_at_another_level_are_a_conflict(house: House, register: Register) -> None:
    await register()
    with pytest.raises(ConflictError, match="already taken by a model"):
        await register(2.0, task="net", name="other")
    await house.registrar.create_task(a_task("second"))
    with pytest.raises(ConflictError, match="already taken by a task"):
        await register(2.0, name="second")
    with pytest.raises(InvalidError, match="solves task 'digits', not 'second'"):
        await register(2.0, task="second")


async def test_files_beyond_the_limit_are_refused(house: House, model_file: MakeModel, data_file: MakeData) -> None:
    controller = house.settings.controller.model_copy(update={"max_upload_bytes": 1024})
    house.settings = house.settings.model_copy(update={"controller": controller})
    registrar = house.again()
    data = data_file(x=np.zeros((900, 4), "f4"), label=np.zeros(900, int))
    with pytest.raises(TooLargeError, match="at most 1,024"):
        await registrar.register(Upload(model_file(), "net.onnx", data), RegistrationOptions("digits"))


async def test_task_defaults_of_the_configuration_go_over_those_that_were_set(
    house: House, tmp_path: Path, register: Register
) -> None:
    house.settings = Settings.model_validate(
        {"state_dir": tmp_path / "state", "tasks": {"digits": {"defaults": {"slo_latency_ms": 20}}}}
    )
    house.again()
    await register()
    await house.registrar.set_task("digits", TaskChange({"slo_accuracy_min": 0.8, "objective": "latency"}, {"a": "b"}))
    await house.registrar.step_refill()
    task = decode(await house.record(Kind.TASK, "digits") or b"", Task)
    assert (task.defaults.slo_latency_ms, task.defaults.slo_accuracy_min) == (20, 0.8)
    with pytest.raises(ConflictError, match="the configuration sets slo_latency_ms"):
        await house.registrar.set_task("digits", TaskChange({"slo_latency_ms": 5}))
    with pytest.raises(InvalidError, match="unknown default 'speed'"):
        await house.registrar.set_task("digits", TaskChange({"speed": 5}))
    with pytest.raises(InvalidError, match="slo_accuracy_min"):
        await house.registrar.set_task("digits", TaskChange({"slo_accuracy_min": 5}))
    with pytest.raises(InvalidError, match="policy 'magic' is not known"):
        await house.registrar.set_task("digits", TaskChange({"policy": "magic"}))


async def test_documents_show_the_frontier_and_the_default_floor(house: House, register: Register) -> None:
    await register()
    await house.turn()
    for recipe, p95, accuracy, cost in (("good", 4.0, 0.95, 0.2), ("cheap", 2.0, 0.9, 0.1), ("bad", 5.0, 0.9, 0.3)):
        variant = replace(
            a_variant(f"net.v1.{recipe}", model="net", p95_ms=p95, accuracy=accuracy, cost=cost), recipe=recipe
        )
        result = BuildResult(BuildId("net@1"), recipe, variant, "made", "")
        await house.store.put(Kind.RESULT, f"net@1/{recipe}", encode(result))
    end = BuildResult(BuildId("net@1"), "*", None, "made", "")
    await house.store.put(Kind.RESULT, "net@1/*", encode(end))
    for _ in range(3):
        await house.turn()
    documents = {d.recipe: d for d in await house.registrar.list_variants(task="digits")}
    assert {r: (d.is_on_frontier, d.dominated_by) for r, d in documents.items()} == {
        "good": (True, None),
        "cheap": (True, None),
        "bad": (False, "net.v1.cheap"),
    }
    task = await house.registrar.describe_task("digits")
    assert (task.ready_variants, task.best_accuracy, task.models) == (3, 0.95, ("net",))
    assert task.default_floor == pytest.approx(0.93)
    assert [d.name for d in await house.registrar.list_variants(task="other")] == []
    with pytest.raises(NotFoundError):
        await house.registrar.list_variants(model="nope")
    await house.turn()
    assert house.fleet.asked == ["net.v1.good"], "the default floor rules the cheap one out"


async def test_a_build_is_watched_to_its_end(house: House, register: Register) -> None:
    await register()
    loops = [
        asyncio.create_task(house.registrar.run_results(), name="results"),
        asyncio.create_task(house.registrar.run_refill(), name="refill"),
    ]
    states = []
    try:
        async with asyncio.timeout(30):
            async for document in house.registrar.watch_build("net", 1):
                if document is None:
                    continue
                states.append(document.state)
                if len(states) == 1:
                    await house.build(1)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
    assert states[0] == "RECEIVED"
    assert states[-1] == "READY"


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
