"""The least that a gRPC server in Python is: one grpc.aio method that calls ONNX Runtime."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop

from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.runtimes.onnxruntime_options import open_session


async def serve(model: str, port: int) -> None:
    session = open_session(model, 1)
    given, out = session.get_inputs()[0].name, session.get_outputs()[0].name

    async def infer(request: Any, context: Any) -> Any:
        rows = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(request.inputs[0].shape)
        values = session.run([out], {given: rows})[0]
        answer = oip.ModelInferResponse(model_name=request.model_name, model_version="1")
        answer.outputs.add(name=out, datatype="FP32", shape=values.shape)
        answer.raw_output_contents.append(values.tobytes())
        return answer

    method = grpc.unary_unary_rpc_method_handler(
        infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(chosen.model, chosen.port))


if __name__ == "__main__":
    main()
