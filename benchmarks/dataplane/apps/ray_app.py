"""Ray Serve with one replica and its batching, behind its own proxy; it reads requests as the bare FastAPI app."""

from __future__ import annotations

import argparse
import importlib
import signal
import threading
from typing import Any

import numpy as np
import onnxruntime

orjson: Any = importlib.import_module("orjson")  # only peers have these
ray: Any = importlib.import_module("ray")
serve: Any = importlib.import_module("ray.serve")
Response: Any = importlib.import_module("starlette.responses").Response

BATCH, WAIT_S, MOST_ON_WAY = 32, 0.001, 4_000
FAR_S, FAR_MS = 3_600, 3_600_000
"""Nobody's health is looked at: peers stand still while others are measured."""


class Inference:
    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options)
        self.given, self.out = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
    async def run(self, rows: list[Any]) -> list[Any]:
        values = self.session.run([self.out], {self.given: np.concatenate(rows)})[0]
        return [values[n : n + 1] for n in range(len(rows))]

    async def __call__(self, request: Any) -> Any:
        body = await request.body()
        length = request.headers.get("inference-header-content-length")
        tensor = orjson.loads(body if length is None else body[: int(length)])["inputs"][0]
        if length is None:
            rows = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        else:
            rows = np.frombuffer(body, dtype=np.float32, offset=int(length)).reshape(tensor["shape"])
        values = await self.run(rows)
        output = {"name": self.out, "datatype": "FP32", "shape": values.shape}
        answer = {"model_version": "1", "outputs": [output]}
        if length is None:
            output["data"] = values.ravel()
            return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
        raw = values.tobytes()
        output["parameters"] = {"binary_data_size": len(raw)}
        head = orjson.dumps(answer)
        fields = {"inference-header-content-length": str(len(head))}
        return Response(head + raw, headers=fields, media_type="application/octet-stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        _system_config={"health_check_period_ms": FAR_MS, "health_check_timeout_ms": FAR_MS},
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    deployment = serve.deployment(
        num_replicas=1, max_ongoing_requests=MOST_ON_WAY, health_check_period_s=FAR_S, health_check_timeout_s=FAR_S
    )
    serve.run(deployment(Inference).bind(chosen.model), route_prefix="/infer")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
