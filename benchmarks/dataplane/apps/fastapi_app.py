"""What people write by hand: one route, orjson, ONNX Runtime called in it. One uvicorn process."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

orjson: Any = importlib.import_module("orjson")  # only peers have it


def made(session: Any) -> FastAPI:
    app = FastAPI()
    given, out = session.get_inputs()[0].name, session.get_outputs()[0].name

    async def infer(name: str, request: Request) -> Response:
        body = await request.body()
        length = request.headers.get("inference-header-content-length")
        if length is None:
            tensor = orjson.loads(body)["inputs"][0]
            rows = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        else:
            tensor = orjson.loads(body[: int(length)])["inputs"][0]
            rows = np.frombuffer(body, dtype=np.float32, offset=int(length)).reshape(tensor["shape"])
        values = session.run([out], {given: rows})[0]
        output = {"name": out, "datatype": "FP32", "shape": values.shape}
        answer = {"model_name": name, "model_version": "1", "outputs": [output]}
        if length is None:
            output["data"] = values.ravel()
            return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
        raw = values.tobytes()
        output["parameters"] = {"binary_data_size": len(raw)}
        head = orjson.dumps(answer)
        fields = {"inference-header-content-length": str(len(head))}
        return Response(head + raw, headers=fields, media_type="application/octet-stream")

    app.add_api_route("/v2/models/{name}/infer", infer, methods=["POST"], response_model=None)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(chosen.model, options)
    uvicorn.run(made(session), port=chosen.port, loop="uvloop", http="httptools", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
