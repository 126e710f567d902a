"""The control plane through a real FastAPI application, over the real registrar, catalogue, store and repository."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from infaas_controller.api.admin import admin_router
from infaas_controller.journal import Journal
from infaas_controller.register.registrar import Registrar
from infaas_controller.scalings import Scalings
from onnx import TensorProto, helper, numpy_helper

from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.control import WorkerDocument
from infaas.domain.action import Action, Autoscaling, Cause, ScalingStep, VariantUse
from infaas.domain.build import BuildResult
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import BuildId, DecisionId, TaskName, VariantName, WorkerId
from infaas.domain.query import Decision, Level
from infaas.errors import InfaasError, NotFoundError
from infaas.repository.local import LocalRepository
from infaas.rpc.codec import encode
from infaas.rpc.edges import edge_of, error_body
from infaas.settings import Settings
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing.builders import a_variant


def a_decision(number: int) -> Decision:
    at = f"2026-01-01T00:00:{number:02}.000Z"
    ids = (DecisionId(f"d-{number}"), f"r-{number}")
    return Decision(*ids, at, "digits", Level.TASK, TaskName("digits"), "slo", {"latency_ms": 5.0}, "saturated", "full")


@dataclass
class Service:
    """The query path's side: an empty view, and two decisions in memory."""

    view: ClusterView = field(default_factory=ClusterView)
    decisions: tuple[Decision, ...] = (a_decision(2), a_decision(1))

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        return worker or WorkerId("w1")

    def unload(self, variant: VariantName) -> int:
        return 0

    def decision(self, key: str) -> Decision | None:
        return next((d for d in self.decisions if key in (d.id, d.request_id)), None)

    def recent(self, limit: int) -> Sequence[Decision]:
        return self.decisions[:limit]


@dataclass
class Workers:
    states: dict[str, str] = field(default_factory=lambda: {"w1": "READY"})

    def documents(self) -> Sequence[WorkerDocument]:
        return [
            WorkerDocument(id, "unix:/x", state, "local", "h", 2, 2**30, 0.04, True, 0.1)
            for id, state in self.states.items()
        ]

    def require_listed(self) -> None:
        """They all are."""

    async def drain(self, id: str) -> None:
        self._set(id, "DRAINING")

    async def resume(self, id: str) -> None:
        self._set(id, "READY")

    def _set(self, id: str, state: str) -> None:
        if id not in self.states:
            raise NotFoundError(f"there is no worker {id!r}")
        self.states[id] = state


@dataclass
class House:
    http: httpx.AsyncClient
    app: FastAPI
    registrar: Registrar
    store: RedisStore
    journal: Journal
    scalings: Scalings

    async def build(self, version: int = 1, **figures: Any) -> None:
        """Play the generator and give the loops their turns."""
        await self.registrar.step_refill()
        ident = BuildId(f"net@{version}")
        variant = replace(a_variant(f"net.v{version}.fp32", model="net", version=version, **figures), recipe="fp32")
        await self.store.put(Kind.RESULT, f"{ident}/fp32", encode(BuildResult(ident, "fp32", variant, "made", "")))
        await self.store.put(Kind.RESULT, f"{ident}/*", encode(BuildResult(ident, "*", None, "made", "")))
        self.registrar._note_news()
        for _ in range(3):
            await self.registrar.step_results()
            await self.registrar.step_refill()


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InfaasError)
    return Response(error_body(error, None), edge_of(error.code).http, media_type="application/json")


@pytest.fixture
async def house(tmp_path: Path, redis_store: RedisStore) -> AsyncIterator[House]:
    settings = Settings.model_validate(
        {"state_dir": tmp_path / "state", "controller": {"max_upload_bytes": 200_000}}
    )  # fmt: skip
    catalog = Catalog.open(settings.database_url)
    service = Service()
    registrar = Registrar(
        catalog, redis_store, LocalRepository(tmp_path / "artifacts"), service, settings, SystemClock()
    )  # fmt: skip
    journal = Journal(catalog, sample=1.0)
    app = FastAPI()
    scalings = Scalings()
    app.include_router(admin_router(registrar, service, Workers(), journal, scalings=scalings))  # type: ignore[arg-type]
    app.add_exception_handler(InfaasError, _on_error)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield House(http, app, registrar, redis_store, journal, scalings)
    catalog.close()


def model_bytes(scale: float = 1.0) -> bytes:
    weights = numpy_helper.from_array(np.arange(12, dtype="f4").reshape(4, 3) * np.float32(scale), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weights],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


async def post(house: House, scale: float = 1.0, key: str | None = None, **fields: Any) -> httpx.Response:
    data = {"task": "digits", "name": "net", "accuracy": "0.9", **fields}
    files = {"file": ("net.onnx", model_bytes(scale), "application/octet-stream")}
    headers = {} if key is None else {"Idempotency-Key": key}
    sent = {name: value for name, value in data.items() if value is not None}
    return await house.http.post("/v1/models", data=sent, files=files, headers=headers)


async def test_a_registration_is_202_with_the_place_to_look(house: House) -> None:
    answer = await post(house, label=["team=a", "stage=test"], map=["x=image", "y=scores"])
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/v1/models/net/versions/1"
    assert answer.json()["is_new"] is True
    version = (await house.http.get(answer.headers["location"])).json()
    assert (version["state"], version["declared_accuracy"]) == ("RECEIVED", 0.9)
    task = (await house.http.get("/v1/tasks/digits")).json()["task"]
    assert (task["inputs"][0]["name"], task["outputs"][0]["name"]) == ("image", "scores")
    assert (await house.http.get("/v1/models/net")).json()["labels"] == {"team": "a", "stage": "test"}
    assert list((Path(house.registrar.settings.state_dir) / "run").iterdir()) == [], "nothing is left of the upload"


async def test_the_same_key_gets_the_same_answer(house: House) -> None:
    first = await post(house, key="k")
    again = await post(house, key="k")
    assert (first.json(), first.status_code) == (again.json(), again.status_code)
    assert (await post(house, 2.0, key="k")).status_code == 409


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": None}, "field 'task' is missing"),
        ({"accuracy": "high"}, "accuracy 'high' is not a number"),
        ({"map": "x"}, "map 'x' is not of the form theirs=ours"),
        ({"label": ["a=1", "a=2"]}, "label 'a' was given twice"),
        ({"metric": "os.system"}, "unknown metric"),
        ({"nonsense": "1"}, "unknown field 'nonsense'"),
        ({"name": ["a", "b"]}, "field 'name' was given 2 times"),
        ({"name": "x" * 20_000}, "longer than"),
    ],
)
async def test_a_form_that_is_wrong_is_400_in_words(house: House, fields: dict[str, Any], words: str) -> None:
    answer = await post(house, **fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


async def test_all_problems_of_an_upload_are_listed(house: House) -> None:
    files = {"file": ("../x.onnx", b"junk"), "eval": ("e.npz", b"junk")}
    answer = await house.http.post("/v1/models", data={"task": "a b", "metric": "no"}, files=files)
    assert answer.status_code == 400
    problems = answer.json()["problems"]
    for words in ("task 'a b'", "is a path", "unknown metric", "not an ONNX file", "not a readable npz"):
        assert any(words in problem for problem in problems), (words, problems)


async def test_an_upload_beyond_the_limit_is_413_while_it_is_sent(house: House) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await house.http.post("/v1/models", content=body(), headers=headers)
    assert answer.status_code == 413
    answer = await house.http.post("/v1/models", files={"file": b"x" * 300_000}, data={"task": "t"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"{}", "application/json", "multipart/form-data"),
        (b"--B\r\nnonsense", "multipart/form-data; boundary=B", "multipart"),
        (b"--B\r\nContent-Disposition: form-data\r\n\r\n1\r\n--B--\r\n", "multipart/form-data; boundary=B", "no name"),
        (
            b'--B\r\nContent-Disposition: form-data; name="task"\r\n\r\nx',
            "multipart/form-data; boundary=B",
            "ends before",
        ),
    ],
)
async def test_bodies_that_are_no_form_are_400(house: House, content: bytes, kind: str, words: str) -> None:
    answer = await house.http.post("/v1/models", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


async def test_a_build_can_be_read_and_watched(house: House) -> None:
    await post(house)
    assert (await house.http.get("/v1/models/net/versions/1/build")).json()["state"] == "RECEIVED"
    path = "/v1/models/net/versions/1/build"
    watching = asyncio.create_task(house.http.get(path, headers={"Accept": "text/event-stream"}), name="watch")
    await house.build()
    async with asyncio.timeout(30):
        answer = await watching
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block for block in answer.text.split("\n\n") if block.startswith("event: build")]
    last = json.loads(events[-1].split("data: ", 1)[1])
    assert (last["model"], last["version"], last["state"]) == ("net", 1, "READY")


async def test_models_variants_and_versions_are_listed_and_described(house: House) -> None:
    await post(house)
    await house.build(accuracy=0.9)
    models = (await house.http.get("/v1/models")).json()["models"]
    assert [(m["name"], m["current"], m["state"]) for m in models] == [("net", 1, "READY")]
    assert (await house.http.get("/v1/models", params={"task": "other"})).json() == {"models": []}
    versions = (await house.http.get("/v1/models/net/versions")).json()["versions"]
    assert versions[0]["variants"] == ["net.v1.fp32"]
    for path in ("/v1/variants", "/v1/models/net/variants", "/v1/variants?task=digits&model=net"):
        (variant,) = (await house.http.get(path)).json()["variants"]
        assert (variant["name"], variant["is_current"], variant["is_on_frontier"]) == ("net.v1.fp32", True, True)
        assert variant["accuracy"]["value"] == 0.9
    one = (await house.http.get("/v1/variants/net.v1.fp32")).json()
    assert one["p95_ms"] == pytest.approx(2.0)


async def test_variants_are_disabled_and_enabled(house: House) -> None:
    await post(house)
    await house.build()
    answer = await house.http.post("/v1/variants/net.v1.fp32/disable", json={"reason": "slow"})
    assert (answer.json()["state"], answer.json()["reason"]) == ("DISABLED", "slow")
    assert (await house.http.post("/v1/variants/net.v1.fp32/enable")).json()["state"] == "READY"


async def test_rollback_and_unregistration(house: House) -> None:
    await post(house)
    await house.build()
    assert (await house.http.post("/v1/models/net/rollback")).status_code == 412
    assert (await house.http.post("/v1/models/net/rollback", json={"to": 9})).status_code == 404
    await post(house, 2.0)
    await house.build(2)
    answer = await house.http.post("/v1/models/net/rollback", json={"to": 2})
    assert answer.status_code == 202
    gone = await house.http.delete("/v1/models/net")
    assert (gone.status_code, gone.json()["reason"]) == (202, "unregistered")
    assert (await house.http.get("/v1/models")).json() == {"models": []}
    assert (await house.http.post("/v1/variants/net.v1.fp32/enable")).status_code == 412


async def test_tasks_are_created_changed_and_described(house: House) -> None:
    body = {
        "name": "sums",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
        "labels": {"a": "b"},
        "defaults": {"slo_latency_ms": 10},
    }
    answer = await house.http.post("/v1/tasks", json=body)
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/tasks/sums")
    assert (await house.http.post("/v1/tasks", json=body)).status_code == 409
    change = {"defaults": {"slo_latency_ms": None, "max_cost": 0.5}, "labels": {"a": None, "c": "d"}, "classes": ["n"]}
    changed = (await house.http.patch("/v1/tasks/sums", json=change)).json()["task"]
    assert (changed["defaults"]["slo_latency_ms"], changed["defaults"]["max_cost"]) == (None, 0.5)
    assert (changed["labels"], changed["classes"]) == ({"c": "d"}, ["n"])
    assert [t["task"]["name"] for t in (await house.http.get("/v1/tasks")).json()["tasks"]] == ["sums"]
    bad = await house.http.patch("/v1/tasks/sums", json={"defaults": {"slo_accuracy_min": 7}})
    assert bad.status_code == 400


async def test_creating_a_task_twice_under_one_key_is_one_creation(house: House) -> None:
    spec = {"name": "x", "datatype": "FP32", "shape": [-1]}
    body = {"name": "t", "inputs": [spec], "outputs": [{**spec, "name": "y"}]}
    headers = {"Idempotency-Key": "k"}
    answers = [await house.http.post("/v1/tasks", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]


async def test_workers_are_listed_drained_and_resumed(house: House) -> None:
    assert [w["id"] for w in (await house.http.get("/v1/workers")).json()["workers"]] == ["w1"]
    assert (await house.http.post("/v1/workers/w1/drain")).json()["state"] == "DRAINING"
    assert (await house.http.post("/v1/workers/w1/resume")).json()["state"] == "READY"
    assert (await house.http.get("/v1/workers/w2")).status_code == 404
    assert (await house.http.post("/v1/workers/w2/drain")).status_code == 404


async def test_scaling_steps_are_listed_newest_first_and_by_worker_and_variant(house: House) -> None:
    steps = [
        ScalingStep(f"s-{n}", 1e9 + n, Action.REPLICATE, Cause.BUSY, VariantName(f"v{n % 2}"), "why", n)
        for n in range(4)
    ]
    said = Autoscaling(is_on=True, uses=(VariantUse(VariantName("v1"), 2, 0, 1.5),), steps=tuple(steps))
    house.scalings.heard(WorkerId("w1"), encode(said))
    status = (await house.http.get("/v1/autoscaler")).json()
    assert status == {
        "workers": [
            {
                "worker": "w1",
                "is_on": True,
                "variants": [{"variant": "v1", "replicas": 2, "loading": 0, "busy": 1.5}],
            }
        ]
    }
    found = (await house.http.get("/v1/autoscaler/decisions")).json()["steps"]
    assert [step["id"] for step in found] == ["s-3", "s-2", "s-1", "s-0"]
    assert found[0] == {
        "id": "s-3", "at": "2001-09-09T01:46:43.000Z", "action": "replicate", "cause": "busy", "variant": "v1",
        "reason": "why", "replicas": 3, "worker": "w1", "instance": None,
    }  # fmt: skip

    async def ids(**asked: object) -> list[str]:
        answer = await house.http.get(
            "/v1/autoscaler/decisions", params={key: str(value) for key, value in asked.items()}
        )
        return [step["id"] for step in answer.json()["steps"]]

    assert await ids(variant="v0", limit=1) == ["s-2"]
    assert await ids(worker="w1", variant="v1") == ["s-3", "s-1"]
    assert await ids(worker="w2") == []
    assert (await house.http.get("/v1/autoscaler/decisions?limit=0")).status_code == 422


async def test_decisions_are_explained_from_memory_and_from_the_journal(house: House) -> None:
    assert house.journal.take("saturated", "digits")
    house.journal.keep(a_decision(0))
    await house.journal.drain()
    assert (await house.http.get("/v1/decisions/r-2")).json()["id"] == "d-2"
    assert (await house.http.get("/v1/decisions/d-0")).json()["reason"] == "full"
    assert (await house.http.get("/v1/decisions/d-9")).status_code == 404
    every = (await house.http.get("/v1/decisions")).json()["decisions"]
    assert [d["id"] for d in every] == ["d-2", "d-1", "d-0"]
    assert [d["id"] for d in (await house.http.get("/v1/decisions?limit=1")).json()["decisions"]] == ["d-2"]


@pytest.mark.parametrize(
    "path",
    ["/v1/tasks/x", "/v1/models/x", "/v1/models/x/versions", "/v1/models/x/versions/1", "/v1/models/x/versions/1/build",
     "/v1/models/x/variants", "/v1/variants/x", "/v1/variants?model=x"],
)  # fmt: skip
async def test_what_is_not_there_is_404(house: House, path: str) -> None:
    answer = await house.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"


async def test_every_operation_documents_its_answers_and_errors(house: House) -> None:
    schema = get_openapi(title="t", version="1", routes=house.app.routes)
    operations = [(path, verb, op) for path, item in schema["paths"].items() for verb, op in item.items()]
    assert len(operations) >= 20
    for path, verb, operation in operations:
        answers = operation["responses"]
        assert {"401", "503"} <= set(answers), (verb, path)
        assert answers["503"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorDocument")
        if "{" in path:
            assert "404" in answers, (verb, path)
    form = schema["paths"]["/v1/models"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "task"]
