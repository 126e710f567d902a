"""The peers of a run: other servers of the same graph on the same core, asked the same by the same generator.

Those from Python packages run from environments of their own; Triton is found as the tests find it. What cannot be
had is left out, and the table says why.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from dataplane.environments import CannotMakeError, python_of
from dataplane.graphs import OUTPUT, Prepared
from dataplane.native_load import NULL as NULL_PROGRAM
from dataplane.native_load import CannotBuildError, built
from dataplane.servers import BINARY, FASTAPI, JSON, LeftOut, Pins, Server, wait_listening
from infaas.testing.triton import add_model, find_tritonserver, free_port, why_no_triton

APPS = Path(__file__).parent / "apps"
MOSEC, MOSEC_ALONE, MLSERVER, RAY, TRITON = (
    "mosec, batches of 32", "mosec as it comes", "MLServer", "Ray Serve", "Triton python backend",
)  # fmt: skip
"""Batches are one query each with mosec unless its owner says otherwise; 32 are as many as there are callers."""
GRPC_AIO, BARE, NULL = "bare grpc.aio", "bare loop", "null server"
NAMES = {
    "fastapi": FASTAPI, "mosec": MOSEC, "mosec-alone": MOSEC_ALONE, "mlserver": MLSERVER, "ray": RAY,
    "triton": TRITON, "grpc": GRPC_AIO, "bare": BARE, "null": NULL,
}  # fmt: skip
_START_S = 120.0
_STOP_S = 10.0
_HOST = "127.0.0.1"
_TRITON_MODEL = """
import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = pathlib.Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(file), options)

    def execute(self, requests):
        rows = [request.inputs()[0].as_numpy() for request in requests]
        answers = self.session.run(None, {"x": np.concatenate(rows)})[0]
        parts = np.split(answers, np.cumsum([len(row) for row in rows])[:-1])
        return [backend.InferenceResponse([backend.Tensor("y", part)]) for part in parts]
"""


class CannotStartError(Exception):
    """A peer is left out, and this is why."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What peers are started with."""

    pins: Pins
    folder: Path
    """For logs and repositories of this run."""
    cache: Path
    """For what takes long to make: environments, programs."""


@contextmanager
def peer(name: str, kit: Kit, prepared: Prepared) -> Iterator[Server]:
    """Runs while the context does. Raises CannotStartError."""
    with _STARTERS[name](kit, prepared) as server:
        yield server


def _python(name: str, kit: Kit) -> Path:
    try:
        return python_of(name, kit.cache)
    except CannotMakeError as error:
        raise CannotStartError(str(error)) from error


@contextmanager
def _fastapi(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("fastapi_app", _python("fastapi", kit), kit, prepared) as (address, pid):
        yield Server(FASTAPI, address, {FASTAPI: pid})


@contextmanager
def _mosec(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("mosec_app", _python("mosec", kit), kit, prepared, "--batch", "32") as (address, pid):
        yield Server(MOSEC, address, {MOSEC: pid}, path="/inference")


@contextmanager
def _mosec_alone(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("mosec_app", _python("mosec", kit), kit, prepared, "--batch", "1") as (address, pid):
        yield Server(MOSEC_ALONE, address, {MOSEC_ALONE: pid}, path="/inference")


@contextmanager
def _ray(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("ray_app", _python("ray", kit), kit, prepared) as (address, pid):
        yield Server(RAY, address, {RAY: pid}, path="/infer")


@contextmanager
def _mlserver(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    """Its REST protocol has no binary tensors."""
    python = _python("mlserver", kit)
    rest, grpc, metrics = free_port(), free_port(), free_port()
    folder = kit.folder / "mlserver"
    folder.mkdir(exist_ok=True)
    settings = {
        "host": _HOST, "http_port": rest, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0,
        "debug": False, "use_structured_logging": False,
    }  # fmt: skip
    model = {
        "name": prepared.model.name, "implementation": "mlserver_app.OnnxModel", "max_batch_size": 32,
        "max_batch_time": 0.001, "parameters": {"uri": str(prepared.file)},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    words = [str(python.with_name("mlserver")), "start", str(folder)]
    with _program(MLSERVER, words, (_HOST, rest), kit, {"PYTHONPATH": str(APPS)}) as pid:
        yield Server(MLSERVER, (_HOST, rest), {MLSERVER: pid}, rest=(JSON,))


@contextmanager
def _grpc(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("grpc_app", Path(sys.executable), kit, prepared) as (address, pid):
        yield Server(GRPC_AIO, address, {GRPC_AIO: pid}, grpc=address, rest=())


@contextmanager
def _bare(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("bare_app", Path(sys.executable), kit, prepared) as (address, pid):
        yield Server(BARE, address, {BARE: pid}, rest=(BINARY,))


@contextmanager
def _null(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    try:
        program = built(NULL_PROGRAM, kit.cache)
    except CannotBuildError as error:
        raise CannotStartError(str(error)) from error
    answer = kit.folder / "null-answer"
    answer.write_bytes(_an_answer(prepared))
    address = (_HOST, free_port())
    words = [str(program), str(address[1]), str(answer)]
    with _program(NULL, words, address, kit) as pid:
        yield Server(NULL, address, {NULL: pid})


def _an_answer(prepared: Prepared) -> bytes:
    """Of the form and about the size of a real one."""
    values = prepared.answers[:1].astype("<f4").tobytes()
    output = {"name": OUTPUT, "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": len(values)}}
    head = json.dumps({"model_name": prepared.model.name, "model_version": "1", "outputs": [output]}).encode()
    fields = f"inference-header-content-length: {len(head)}\r\ncontent-length: {len(head) + len(values)}\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\n" + fields.encode() + head + values


@contextmanager
def _triton(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    if why := why_no_triton():
        raise CannotStartError(why)
    repository = kit.folder / "triton-models"
    model = prepared.model
    add_model(
        repository, model.name, prepared.file.read_bytes(), model.inputs, model.outputs, more="dynamic_batching { }"
    )
    (repository / model.name / "1" / "model.py").write_text(_TRITON_MODEL)
    rest, grpc = free_port(), free_port()
    words = [
        str(find_tritonserver()), "--model-repository", str(repository), "--allow-metrics", "false",
        "--http-address", _HOST, "--http-port", str(rest), "--grpc-address", _HOST, "--grpc-port", str(grpc),
        "--backend-config", f"python,shm-region-prefix-name=infaas-bench-{secrets.token_hex(6)}",
        "--exit-timeout-secs", "2",
    ]  # fmt: skip
    with _program(TRITON, words, (_HOST, rest), kit) as pid:
        yield Server(TRITON, (_HOST, rest), {TRITON: pid}, grpc=(_HOST, grpc))


_STARTERS: dict[str, Callable[[Kit, Prepared], AbstractContextManager[Server]]] = {
    "fastapi": _fastapi,
    "mosec": _mosec,
    "mosec-alone": _mosec_alone,
    "mlserver": _mlserver,
    "ray": _ray,
    "triton": _triton,
    "grpc": _grpc,
    "bare": _bare,
    "null": _null,
}


@contextmanager
def _app(name: str, python: Path, kit: Kit, prepared: Prepared, *more: str) -> Iterator[tuple[tuple[str, int], int]]:
    address = (_HOST, free_port())
    words = [str(python), str(APPS / f"{name}.py"), "--model", str(prepared.file), "--port", str(address[1]), *more]
    with _program(name, words, address, kit) as pid:
        yield address, pid


@contextmanager
def _program(
    name: str, words: Sequence[str], address: tuple[str, int], kit: Kit, more: Mapping[str, str] | None = None
) -> Iterator[int]:
    """It leads a process group of its own, and what it starts in others ends with it too, so that nothing stays."""
    log = kit.folder / f"{name.replace(' ', '-')}.log"
    # What follows the interpreter's own path of the benchmark must not reach a peer of another environment.
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or words[0] == sys.executable}
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(more or {})}
    with log.open("ab") as out, kit.pins.for_server():
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ, start_new_session=True
        )
    try:
        try:
            wait_listening(address, lambda: process.poll() is None, _START_S)
        except (TimeoutError, ChildProcessError) as error:
            raise CannotStartError(f"{error}: {log.read_text(errors='replace').strip()[-300:]}") from error
        yield process.pid
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    below: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for one in below:  # psutil knows a number that another process has by now
        with suppress(psutil.NoSuchProcess):
            one.kill()


def left_out(name: str, error: CannotStartError) -> LeftOut:
    return LeftOut(NAMES[name], " ".join(str(error).split())[:200])
