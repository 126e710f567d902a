"""A real Triton server for tests, and models for it: ONNX graphs run by its Python backend.

The binary comes from `INFAAS_TEST_TRITONSERVER` or the PATH; without one, tests skip with the reason.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InfaasError
from infaas.triton.server import TritonServer

VARIABLE = "INFAAS_TEST_TRITONSERVER"
START_S = 60.0
_STOP_S = 20.0
_TYPES = {Datatype.BYTES: "TYPE_STRING"}
_MODEL = """
import json
import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.names = json.loads((folder / "names.json").read_text())

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            feed = {self.names.get(t.name(), t.name()): given(t.as_numpy()) for t in request.inputs()}
            wanted = list(request.requested_output_names())
            answers = self.session.run([self.names.get(name, name) for name in wanted], feed)
        except Exception as error:
            return backend.InferenceResponse(error=backend.TritonError(str(error)))
        return backend.InferenceResponse([backend.Tensor(n, taken(a)) for n, a in zip(wanted, answers)])


def given(array):
    if array.dtype != object:
        return array
    return np.array([b.decode() for b in array.reshape(-1)], dtype=object).reshape(array.shape)


def taken(array):
    array = np.atleast_1d(array)
    if array.dtype != object:
        return array
    return np.array([str(s).encode() for s in array.reshape(-1)], dtype=object).reshape(array.shape)
"""


def find_tritonserver() -> str | None:
    return os.environ.get(VARIABLE) or shutil.which("tritonserver")


def why_no_triton() -> str | None:
    """For a skip: None when there is a server to test with."""
    if find_tritonserver() is None:
        return f"there is no tritonserver here, neither on the PATH nor in {VARIABLE}"
    return None


def add_model(
    repository: Path,
    name: str,
    graph: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    max_batch_size: int = 32,
    instances: int = 1,
    renames: Mapping[str, str] | None = None,
    version: int = 1,
    more: str = "",
) -> None:
    """Put a graph into a repository. `renames`: the server's names of tensors to the graph's.

    With a batch limit of 0 the server is told whole shapes; so is one whose tensors hold nothing but the batch.
    """
    theirs = {ours: name for name, ours in (renames or {}).items()}
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "names.json").write_text(json.dumps(dict(renames or {})))
    (folder / "model.py").write_text(_MODEL)
    lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {max_batch_size}"]
    for what, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            dims = (spec.shape[1:] if max_batch_size else spec.shape) or (1,)
            kind = _TYPES.get(spec.datatype, f"TYPE_{spec.datatype.value}")
            shown = ", ".join(map(str, dims))
            lines.append(
                f'{what} [ {{ name: "{theirs.get(spec.name, spec.name)}" data_type: {kind} dims: [ {shown} ] }} ]'
            )
    lines.append(f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]")
    (repository / name / "config.pbtxt").write_text("\n".join([*lines, more]) + "\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TritonProcess:
    """One server over one repository; `url` stays the same over restarts."""

    def __init__(self, folder: Path, *, mode: str = "explicit") -> None:
        """`mode`: `explicit` loads models on request, `none` all of them at the start."""
        self.repository = folder / "models"
        self.repository.mkdir(parents=True, exist_ok=True)
        self._log = folder / "tritonserver.log"
        self._mode = mode
        self._port = free_port()
        self._process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the server is ready."""
        binary = find_tritonserver()
        if binary is None:
            raise FileNotFoundError("tritonserver")
        command = [
            binary, "--model-repository", str(self.repository), "--model-control-mode", self._mode,
            "--allow-http", "false", "--allow-metrics", "false",
            "--grpc-address", "127.0.0.1", "--grpc-port", str(self._port),
            "--backend-config", f"python,shm-region-prefix-name=infaas-{secrets.token_hex(6)}",
            "--exit-timeout-secs", "5",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._wait_ready(self._process)

    def kill(self) -> None:
        """As a lost machine does: no farewell, and nothing of it stays, its backends' processes included."""
        if self._process is not None:
            self._end_group(self._process)
            self._process = None

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass  # it is ended below, as everything it left is
        self._end_group(self._process)
        self._process = None

    @staticmethod
    def _end_group(process: subprocess.Popen[Any]) -> None:
        """The server leads a session of its own, so the group is its own too."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-3000:]

    def _wait_ready(self, process: subprocess.Popen[Any]) -> None:
        server = TritonServer(self.url)
        deadline = time.monotonic() + START_S
        try:
            while True:
                try:
                    server.require_live(1.0)
                except InfaasError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError(f"the Triton server does not come up: {self.said()}") from None
                else:
                    return
        finally:
            server.close()
