"""What a REST connection costs per query: uvicorn's class specialised, as shipped, beside a protocol of our own.

    python benchmarks/edge.py [--rounds 9] [--json FILE]

One process, no sockets: each protocol is given the bytes of a query and writes its answer into a list. The service
behind answers at once, so what is measured is the edge: from the bytes of a request to those of its answer, reading
tensors and writing them included, by the same code (`Inference`, `Exchange`) for all. CPU per query in microseconds,
medians of rounds that take turns; `shipped` is `BoundedProtocol` with its fast way, `own` is `OwnProtocol` (the
alternative that ADR 19 speaks of), and `ASGI` is the shipped class with the fast way off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvloop
from dataplane.own_protocol import OwnProtocol
from infaas_controller.api.http import create_app
from infaas_controller.api.http_limits import Limits
from infaas_controller.api.http_protocol import BoundedProtocol
from infaas_controller.api.http_server import server_config
from infaas_controller.ports import Answer, Outcome, QueryFailedError, QueryService, VariantStats, Waiter
from uvicorn.server import ServerState

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import DecisionId, InstanceId, VariantName, WorkerId
from infaas.domain.query import Decision, Query
from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.errors import InfaasError
from infaas.observe.metrics import Metrics
from infaas.settings import Settings
from infaas.testing.builders import a_task, a_variant, a_view, a_worker, an_instance

FEATURES, CLASSES = 64, 10
QUERIES = 2_000
"""Of each case and protocol in a round."""


class AtOnce:
    """A `QueryService` that knows the answer."""

    def __init__(self) -> None:
        inputs = (TensorSpec("x", Datatype.FP32, (-1, FEATURES)),)
        outputs = (TensorSpec("y", Datatype.FP32, (-1, CLASSES)),)
        variant = a_variant("digits.v1.ort-fp32-t1", model="mlp", inputs=inputs, outputs=outputs)
        instance = an_instance("i1", variant=variant.name)
        task = a_task("digits", inputs=inputs, outputs=outputs)
        self.view: ClusterView = a_view(tasks=[task], variants=[variant], workers=[a_worker(instances=[instance])])
        outcome = Outcome(
            DecisionId("d-1"), variant.name, "mlp", 1, WorkerId("w1"), InstanceId("i1"), 1, 0.0, 5e-6, 1e-4, 1e-4, 3e-4,
            slo_met=True,
        )  # fmt: skip
        values = struct.pack(f"<{CLASSES}f", *(place / 7 for place in range(CLASSES)))
        self._answer = Answer(outcome, (Tensor("y", Datatype.FP32, (1, CLASSES), values),))

    async def submit(self, query: Query) -> Answer:
        return self._answer

    def can_begin(self, query: Query) -> bool:
        return True

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        waiter.set_result(self._answer)
        return lambda: None

    def refused(self, query: Query, error: InfaasError) -> QueryFailedError:
        return QueryFailedError(error, self._answer.outcome)

    def decide(self) -> None: ...

    def decision(self, key: str) -> Decision | None:
        return None

    def recent(self, limit: int) -> Sequence[Decision]:
        return ()

    def note_alike(self, id: DecisionId, count: int) -> None: ...

    def stats(self) -> Mapping[VariantName, VariantStats]:
        return {}

    def is_ready(self) -> bool:
        return True

    def in_flight(self) -> int:
        return 0


class Written:
    """A transport that keeps what is written, and never has anything to read."""

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview] = []

    def write(self, data: bytes | memoryview) -> None:
        self.pieces.append(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def nothing(self, *_: object, **__: object) -> None: ...

    close = abort = pause_reading = resume_reading = set_protocol = set_write_buffer_limits = write_eof = nothing


@dataclass(frozen=True)
class Row:
    case: str
    protocol: str
    cpu_us: float


def cases() -> dict[str, Callable[[int], bytes]]:
    """Each makes the bytes of a query from its number."""
    values = [place / 3 for place in range(FEATURES)]
    packed = struct.pack(f"<{FEATURES}f", *values)
    tensor: dict[str, Any] = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32"}
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(packed)}}]}
    header = json.dumps({**binary, "parameters": {"binary_data_output": True}}).encode()
    text = json.dumps({"inputs": [{**tensor, "data": values}]}).encode()
    lengths = {"inference-header-content-length": str(len(header))}
    return {
        "binary": lambda _: request(header + packed, lengths),
        "JSON": lambda _: request(text, {}),
        "binary, a request id each": lambda number: request(
            header + packed, {**lengths, "x-request-id": f"q-{number}"}
        ),
    }


def request(body: bytes, fields: Mapping[str, str]) -> bytes:
    all_fields = {
        "host": "127.0.0.1:8000",
        "x-infaas-slo-latency-ms": "100",
        "content-type": "application/octet-stream",
        "content-length": str(len(body)),
        **fields,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_fields.items())
    return f"POST /v2/models/digits/infer HTTP/1.1\r\n{lines}\r\n".encode() + body


def protocols(state: ServerState) -> dict[str, Callable[[], asyncio.Protocol]]:
    app = create_app(cast(QueryService, AtOnce()), Settings(), metrics=Metrics())
    if app.fast is None:
        raise AssertionError("the application has no fast way")
    config = server_config(app, loop="none")
    config.load()
    state.default_headers = [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]
    limits, loop = Limits(), asyncio.get_running_loop()
    common = {"config": config, "server_state": state, "app_state": {}, "_loop": loop}
    shipped = partial(BoundedProtocol, limits, app.fast, **common)
    return {
        "shipped": shipped,
        "own": lambda: OwnProtocol(app.fast, state, limits, config.timeout_keep_alive, shipped),  # type: ignore[arg-type]
        "ASGI": partial(BoundedProtocol, limits, None, **common),
    }


async def measure(
    make: Callable[[], asyncio.Protocol], state: ServerState, requests: Sequence[bytes]
) -> tuple[float, bytes]:
    """CPU seconds per query on one connection, and the last answer's body."""
    protocol, written = make(), Written()
    protocol.connection_made(cast(asyncio.Transport, written))
    began = time.process_time()
    for data in requests:
        protocol.data_received(data)
        while not written.pieces:  # noqa: ASYNC110  (an event would cost those that need none)
            await asyncio.sleep(0)
        answer, written.pieces = b"".join(written.pieces), []
    spent = time.process_time() - began
    await asyncio.gather(*state.tasks)  # an application goes on after its answer
    protocol.connection_lost(None)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(answer)
    return spent / len(requests), answer.partition(b"\r\n\r\n")[2]


async def run(rounds: int) -> list[Row]:
    state = ServerState()
    made = protocols(state)
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for case, make_request in cases().items():
            requests = [make_request(each) for each in range(QUERIES)]
            bodies = set()
            for name, make in made.items():
                spent, answer = await measure(make, state, requests)
                bodies.add(answer)
                if number:  # the first round warms up
                    found.setdefault((case, name), []).append(spent)
            if len(bodies) > 1:
                raise AssertionError(f"{case}: the answers differ: {bodies}")
    return [Row(case, name, statistics.median(spent) * 1e6) for (case, name), spent in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = uvloop.run(run(options.rounds))
    print("| case | protocol | CPU us/query |\n|--|--|--:|")
    for row in rows:
        print(f"| {row.case} | {row.protocol} | {row.cpu_us:.1f} |")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
