"""mosec with one worker. The worker is not shown headers, so it knows a binary tensor by its size."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

import numpy as np
import onnxruntime

mosec: Any = importlib.import_module("mosec")  # only peers have it
orjson: Any = importlib.import_module("orjson")

WAIT_MS = 1
"""For a batch to fill. Batches of one do not wait."""
MODEL = "PEER_MODEL"
"""The variable that tells mosec's own child processes, which run this file anew, what the command line said."""


class Inference(mosec.Worker):  # type: ignore[misc]
    """Made anew in mosec's own child process."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ[MODEL], options)
        self.given = self.session.get_inputs()[0]
        self.out = self.session.get_outputs()[0].name
        self.size = 4 * int(np.prod(self.given.shape[1:]))

    def deserialize(self, data: bytes) -> tuple[Any, bool]:
        if data.endswith(b"}"):
            try:
                tensor = orjson.loads(data)["inputs"][0]
                return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"]), False
            except ValueError:
                pass  # a tensor that ends with the byte of a brace
        tensor = orjson.loads(data[: -self.size])["inputs"][0]
        return np.frombuffer(data, dtype=np.float32, offset=len(data) - self.size).reshape(tensor["shape"]), True

    def forward(self, data: Any) -> Any:
        """One query, or a list of them where batches may be more than one."""
        if isinstance(data, tuple):
            return self._answered([data])[0]
        return self._answered(data)

    def _answered(self, data: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        rows = np.concatenate([row for row, _ in data])
        values = self.session.run([self.out], {self.given.name: rows})[0]
        return [(values[n : n + 1], is_binary) for n, (_, is_binary) in enumerate(data)]

    def serialize(self, data: tuple[Any, bool]) -> bytes:
        values, is_binary = data
        output = {"name": self.out, "datatype": "FP32", "shape": values.shape}
        answer = {"outputs": [output]}
        if not is_binary:
            output["data"] = values.ravel()
            text: bytes = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            return text
        raw: bytes = values.tobytes()
        output["parameters"] = {"binary_data_size": len(raw)}
        head: bytes = orjson.dumps(answer)
        return head + raw


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--batch", type=int, required=True, help="items at most")
    chosen = parser.parse_args()
    os.environ[MODEL] = chosen.model
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", chosen.port, "--log-level", "warning"]
    server = mosec.Server()
    server.append_worker(
        Inference, num=1, max_batch_size=chosen.batch, max_wait_time=WAIT_MS if chosen.batch > 1 else 0
    )
    server.run()


if __name__ == "__main__":
    main()
