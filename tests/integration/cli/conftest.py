"""A small controller on a real socket: it speaks the control plane's documents and OIP's infer, and remembers what it
was asked, so that client and command line are tested over real HTTP before and apart from the real controller."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from infaas.control import (
    AutoscalerDocument,
    BuildDocument,
    FleetDocument,
    FleetPoolDocument,
    FleetStepDocument,
    ModelDocument,
    OutcomeDocument,
    RegistrationDocument,
    ScalingStepDocument,
    SharedMemoryDocument,
    TaskDocument,
    VariantDocument,
    VersionDocument,
    WorkerAutoscalerDocument,
    WorkerDocument,
    WorkerInstanceDocument,
)
from infaas.domain.action import VariantUse
from infaas.domain.build import BuildProgress
from infaas.domain.ids import BuildId, DecisionId, TaskName, VariantName, WorkerId
from infaas.domain.query import Candidate, Decision, Level
from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Accuracy, LatencyPoint
from infaas.rpc.codec import from_plain, to_plain

TASK = Task(
    TaskName("digits"),
    inputs=(TensorSpec("image", Datatype.FP32, (-1, 4)),),
    outputs=(TensorSpec("scores", Datatype.FP32, (-1, 4)),),
    defaults=TaskDefaults(slo_latency_ms=100.0),
)
VARIANT = VariantDocument(
    name="cnn.v1.ort-fp32-t1", task="digits", model="cnn", version=1, is_current=True, recipe="ort-fp32-t1",
    runtime="onnxruntime", hardware="cpu", precision="fp32", threads=1, max_batch_size=32, state="READY", reason="",
    replicas=1, accuracy=Accuracy("accuracy", 0.98, 0.97, 0.99, 599), p50_ms=1.25, p95_ms=1.5, cost_usd_per_1k=0.0001,
    latency=(LatencyPoint(1, 0.00125, 0.00125, 0.0015, 0.002, 600),), is_on_frontier=True,
)  # fmt: skip
SLOWER = VariantDocument(
    name="cnn.v1.ort-int8-t1", task="digits", model="cnn", version=1, is_current=True, recipe="ort-int8-t1",
    runtime="onnxruntime", hardware="cpu", precision="int8", threads=1, max_batch_size=32, state="READY", reason="",
    replicas=0, p50_ms=2.5, dominated_by=VARIANT.name,
)  # fmt: skip
VERSION = VersionDocument(
    model="cnn", task="digits", version=1, state="READY", reason="", is_current=True, digest="ab" * 32,
    created_at="2026-01-01T00:00:00Z", metric="accuracy", evaluation_rows=599, variants=(VARIANT.name,),
    outcomes=(OutcomeDocument("ort-fp32-t1", "made", "", VARIANT.name, 0.0, 3.2),),
)  # fmt: skip
MODEL = ModelDocument("cnn", "digits", "READY", "", 1, {"team": "a"}, (VERSION,), serves=1)
WORKER = WorkerDocument(
    "local-1", "unix:/x", "READY", "local", "here", 2, 2**30, 0.04, True, 0.2,
    instances=(WorkerInstanceDocument("i-1", VARIANT.name, "READY", "", items_done=7),),
    shared_memory=SharedMemoryDocument(True, "", 5, 5 * 2**20, 4, 2**20, 2),
)  # fmt: skip
FAR_WORKER = WorkerDocument(
    "far-1", "10.0.0.7:9000", "READY", "local", "there", 2, 2**30, 0.04, True, 0.2,
    shared_memory=SharedMemoryDocument(False, "the connection is not a unix socket"),
)  # fmt: skip
AUTOSCALER = AutoscalerDocument(
    (
        WorkerAutoscalerDocument("far-1", False),
        WorkerAutoscalerDocument("local-1", True, (VariantUse(VariantName(VARIANT.name), 1, 1, 0.934),)),
    )
)
SCALING_STEP = ScalingStepDocument(
    "s-1", "2026-01-01T00:00:00.000Z", "replicate", "busy", VARIANT.name, "0.93 of 1 run on average", 1, "local-1",
    "i-2",
)  # fmt: skip
FLEET = FleetDocument(
    "local", False, "2026-01-01T00:00:00.000Z", "c-1",
    (FleetPoolDocument("small", "cpu", 1, 0.04, 1, 4, 2, 0, 0, 1, 0, 2),), 1.5, 0.0, 2.14, 2, 0.12, 0.2,
)  # fmt: skip
FLEET_STEPS = [
    FleetStepDocument("s-2", "2026-01-01T00:00:01.000Z", "load", "busy", "small", f"{VARIANT.name}: it is busy",
                      "small-2", variant=VARIANT.name),
    FleetStepDocument("s-1", "2026-01-01T00:00:00.000Z", "add", "demand", "small", "2.1 cores are wanted of 1",
                      "small-2"),
]  # fmt: skip
DECISION = Decision(
    id=DecisionId("d-1"), request_id="r-1", at="2026-01-01T00:00:00.000Z", handle="digits", level=Level.TASK,
    task=TaskName("digits"), policy="slo", requirements={"latency_ms": 50.0}, outcome="answered",
    reason="cheapest of 1 that meets all", variant=VariantName(VARIANT.name), worker=WorkerId("local-1"), floor=0.96,
    predicted_ms=1.9, observed_ms=2.1, queue_ms=0.1, batch=1, slo_met=True, attempts=1,
    candidates=(
        Candidate(VariantName(SLOWER.name), "accuracy 0.910 is below the floor 0.960", 0.003, 0.91),
        Candidate(VariantName(VARIANT.name), "chosen", 0.0019, 0.98, is_loaded=True),
    ),
)  # fmt: skip
ANSWER_HEADERS = {
    "x-request-id": "r-1",
    "x-infaas-decision-id": "d-1",
    "x-infaas-variant": VARIANT.name,
    "x-infaas-worker": "local-1",
    "x-infaas-slo-met": "true",
    "x-infaas-attempts": "1",
    "x-infaas-queue-ms": "0.120",
}


@dataclass
class Controller:
    """`url`, and what it was asked: every request's method, path, headers and form fields."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    token: str | None = None
    progress: list[str] = field(default_factory=lambda: ["profiling"])
    build_state: str = "READY"
    has_no_fleet_leader: bool = False
    behind: int = 0
    """How many times yet a model's document says that queries here do not know its version."""

    def last(self) -> tuple[str, str, dict[str, str], dict[str, Any]]:
        return self.requests[-1]


def failure(status: int, code: str, text: str, **more: Any) -> JSONResponse:
    body = {"error": text, "code": code, "request_id": "r-1", "decision_id": "d-1", "retryable": False, **more}
    return JSONResponse(body, status, headers={"x-infaas-decision-id": "d-1", "x-request-id": "r-1"})


def make_app(controller: Controller) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def remember(request: Request, call_next: Any) -> Any:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        controller.requests.append((request.method, path, dict(request.headers), {}))
        if controller.token and request.headers.get("authorization") != f"Bearer {controller.token}":
            return failure(401, "unauthenticated", "no or wrong token")
        return await call_next(request)

    _add_control(app, controller)
    _add_models(app, controller)
    _add_queries(app)
    return app


def _add_control(app: FastAPI, controller: Controller) -> None:
    def many(key: str, *documents: object) -> dict[str, Any]:
        return {key: [to_plain(one) for one in documents]}

    document = TaskDocument(TASK, ("cnn",), 2, 0.98, 0.96)

    @app.get("/v1/tasks")
    async def tasks() -> Any:
        return many("tasks", document)

    @app.post("/v1/tasks")
    async def create(request: Request) -> Any:
        return JSONResponse(to_plain(TaskDocument(from_plain(await request.json(), Task))), 201)

    @app.get("/v1/tasks/{name}")
    async def task(name: str) -> Any:
        return to_plain(document) if name == "digits" else failure(404, "not-found", f"no task {name!r}")

    @app.patch("/v1/tasks/{name}")
    async def patch(name: str, request: Request) -> Any:
        controller.last()[3].update(await request.json())
        return to_plain(document)

    @app.get("/v1/variants")
    async def variants() -> Any:
        return many("variants", SLOWER, VARIANT)

    @app.get("/v1/variants/{name}")
    async def variant(name: str) -> Any:
        return to_plain(VARIANT)

    @app.post("/v1/variants/{name}/{action}")
    async def switch(name: str, action: str) -> Any:
        return to_plain(VARIANT)

    @app.get("/v1/workers")
    async def workers() -> Any:
        return many("workers", WORKER)

    @app.get("/v1/workers/{worker}")
    async def worker(worker: str) -> Any:
        return to_plain(FAR_WORKER if worker == FAR_WORKER.id else WORKER)

    @app.post("/v1/workers/{worker}/{action}")
    async def work(worker: str, action: str) -> Any:
        return to_plain(WORKER)

    @app.get("/v1/autoscaler")
    async def autoscaler() -> Any:
        return to_plain(AUTOSCALER)

    @app.get("/v1/autoscaler/decisions")
    async def scaling_steps() -> Any:
        return many("steps", SCALING_STEP)

    @app.get("/v1/autoscaler/fleet")
    async def fleet() -> Any:
        if controller.has_no_fleet_leader:
            return failure(503, "unavailable", "no controller has looked at the fleet lately")
        return to_plain(FLEET)

    @app.get("/v1/autoscaler/fleet/decisions")
    async def fleet_steps() -> Any:
        if controller.has_no_fleet_leader:
            return failure(503, "unavailable", "the store cannot be reached")
        return {"steps": [to_plain(step) for step in FLEET_STEPS]}

    @app.get("/v1/decisions")
    async def decisions() -> Any:
        return many("decisions", DECISION)

    @app.get("/v1/decisions/{key}")
    async def decision(key: str) -> Any:
        return to_plain(DECISION) if key in ("d-1", "r-1") else failure(404, "not-found", f"no decision {key!r}")


def _add_models(app: FastAPI, controller: Controller) -> None:
    @app.get("/v1/models")
    async def models() -> Any:
        return {"models": [to_plain(MODEL)]}

    @app.post("/v1/models")
    async def register(request: Request) -> Any:
        seen = controller.last()[3]
        async with request.form() as form:
            for key in form:
                found = form.getlist(key)
                values = [one if isinstance(one, str) else (one.filename, await one.read()) for one in found]
                seen[key] = values if len(values) > 1 else values[0]
        if seen.get("task") == "wrong":
            problems = ["input 'x' is not in the task", "output 'y' has shape [1], [-1, 4] is wanted"]
            return failure(400, "invalid-argument", "; ".join(problems), problems=problems)
        document = RegistrationDocument("cnn", 1, "digits", "RECEIVED", True, True, "/v1/models/cnn/versions/1")
        return JSONResponse(to_plain(document), 202, headers={"location": document.location})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Any:
        controller.behind -= 1
        return to_plain(MODEL if controller.behind < 0 else replace(MODEL, serves=None))

    @app.delete("/v1/models/{name}")
    async def unregister(name: str) -> Any:
        return Response(status_code=204)

    @app.get("/v1/models/{name}/versions")
    async def versions(name: str) -> Any:
        return {"versions": [to_plain(VERSION)]}

    @app.get("/v1/models/{name}/versions/{version}")
    async def version(name: str, version: int) -> Any:
        return to_plain(VERSION)

    @app.post("/v1/models/{name}/rollback")
    async def rollback(name: str, request: Request) -> Any:
        controller.last()[3].update(await request.json())
        return to_plain(MODEL)

    def build(state: str, stage: str) -> dict[str, Any]:
        progress = BuildProgress(BuildId("cnn@1"), "ort-fp32-t1", stage, 0.5 if stage != "done" else 1.0)
        plain: dict[str, Any] = to_plain(BuildDocument("cnn", 1, state, "", "g-1", (progress,)))
        return plain

    @app.get("/v1/models/{name}/versions/{version}/build")
    async def follow(name: str, version: int, request: Request) -> Any:
        if "text/event-stream" not in request.headers.get("accept", ""):
            return build("BUILDING", "profiling")
        events = [build("BUILDING", stage) for stage in controller.progress]
        events.append(build(controller.build_state, "done"))
        return StreamingResponse(
            (f"event: build\ndata: {json.dumps(one)}\n\n" for one in events), media_type="text/event-stream"
        )


def _add_queries(app: FastAPI) -> None:
    @app.get("/v2/health/ready")
    async def ready() -> Any:
        return Response(status_code=200)

    @app.get("/v2/models/{name}")
    async def metadata(name: str) -> Any:
        inputs = [{"name": "image", "datatype": "FP32", "shape": [-1, 4]}]
        return {"name": name, "versions": ["1"], "platform": "infaas", "inputs": inputs, "outputs": []}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(name: str, request: Request, version: str = "1") -> Any:
        if request.headers.get("x-infaas-slo-latency-ms") == "0.001":
            return failure(422, "slo-unsatisfiable", "no variant answers within 0.001 ms; the nearest needs 1.5 ms")
        content = await request.body()
        length = int(request.headers.get("inference-header-content-length", len(content)))
        body, raw = json.loads(content[:length]), content[length:]
        # The model is the identity: what came in goes out, in the form in which it came.
        [tensor] = body["inputs"]
        answer = {"model_name": name, "model_version": version, "outputs": [{**tensor, "name": "scores"}]}
        head = json.dumps(answer).encode()
        headers = dict(ANSWER_HEADERS)
        if raw:
            headers["inference-header-content-length"] = str(len(head))
        return Response(head + raw, headers=headers)


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    server = _Server(uvicorn.Config(make_app(made), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, name="controller")
    thread.start()
    assert server.listening.wait(30)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    server.should_exit = True
    thread.join()
