"""MLServer with a runtime of its own; its adaptive batching joins the rows before `predict` sees them."""

from __future__ import annotations

import importlib
from typing import Any

import onnxruntime

mlserver: Any = importlib.import_module("mlserver")  # only peers have it
types: Any = importlib.import_module("mlserver.types")
codecs: Any = importlib.import_module("mlserver.codecs")


class OnnxModel(mlserver.MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        self.given, self.out = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        return True

    async def predict(self, payload: Any) -> Any:
        rows = codecs.NumpyCodec.decode_input(payload.inputs[0])
        values = self.session.run([self.out], {self.given: rows})[0]
        output = codecs.NumpyCodec.encode_output(self.out, values)
        return types.InferenceResponse(model_name=self.name, model_version="1", outputs=[output])
