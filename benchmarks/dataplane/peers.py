"""The peers of a run: other servers of the same graph on the same core, asked the same by the same generator.

Those from Python packages run from a virtual environment that is made for them and kept; Triton is found as the tests
find it. What cannot be had is left out, and the table says why.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dataplane.graphs import Prepared
from dataplane.servers import FASTAPI, LeftOut, Pins, Server, wait_listening
from infaas.testing.triton import add_model, find_tritonserver, free_port, why_no_triton

APPS = Path(__file__).parent / "apps"
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "numpy", "onnxruntime", "mosec")
MOSEC, TRITON, GRPC_AIO, NULL = "mosec", "Triton python backend", "bare grpc.aio", "null server"
NAMES = {"fastapi": FASTAPI, "mosec": MOSEC, "triton": TRITON, "grpc": GRPC_AIO, "null": NULL}
_START_S = 60.0
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
    environment: Path
    """The virtual environment of peers; made when it is not there."""


def environment(path: Path) -> None:
    """Raises CannotStartError when it cannot be made, with what the installer said."""
    done = path / ".installed"
    wanted = "\n".join(PACKAGES)
    if done.is_file() and done.read_text() == wanted:
        return
    print(f"making {path} for the peers: {', '.join(PACKAGES)}", file=sys.stderr, flush=True)
    venv.create(path, with_pip=True)
    words = [str(path / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise CannotStartError(f"its environment cannot be made: {made.stderr.strip()[-300:]}")
    done.write_text(wanted)


def versions(path: Path) -> dict[str, str]:
    """Of what the peers' environment holds; empty where there is none."""
    python = path / "bin" / "python"
    if not python.is_file():
        return {}
    words = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True)
    return {one["name"]: one["version"] for one in json.loads(listed.stdout) if one["name"] in PACKAGES}


@contextmanager
def peer(name: str, kit: Kit, prepared: Prepared) -> Iterator[Server]:
    """Runs while the context does. Raises CannotStartError."""
    with _STARTERS[name](kit, prepared) as server:
        yield server


@contextmanager
def _fastapi(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    environment(kit.environment)
    with _app("fastapi_app", kit.environment / "bin" / "python", kit, prepared) as (address, pid):
        yield Server(FASTAPI, address, {FASTAPI: pid})


@contextmanager
def _mosec(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    environment(kit.environment)
    with _app("mosec_app", kit.environment / "bin" / "python", kit, prepared) as (address, pid):
        yield Server(MOSEC, address, {MOSEC: pid}, path="/inference")


@contextmanager
def _grpc(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("grpc_app", Path(sys.executable), kit, prepared) as (address, pid):
        yield Server(GRPC_AIO, address, {GRPC_AIO: pid}, grpc=address, has_rest=False)


@contextmanager
def _null(kit: Kit, prepared: Prepared) -> Iterator[Server]:
    with _app("null_app", Path(sys.executable), kit, prepared) as (address, pid):
        yield Server(NULL, address, {NULL: pid})


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
    "triton": _triton,
    "grpc": _grpc,
    "null": _null,
}


@contextmanager
def _app(name: str, python: Path, kit: Kit, prepared: Prepared) -> Iterator[tuple[tuple[str, int], int]]:
    address = (_HOST, free_port())
    words = [str(python), str(APPS / f"{name}.py"), "--model", str(prepared.file), "--port", str(address[1])]
    with _program(name, words, address, kit) as pid:
        yield address, pid


@contextmanager
def _program(name: str, words: Sequence[str], address: tuple[str, int], kit: Kit) -> Iterator[int]:
    """It leads a process group of its own, so that nothing of it stays."""
    log = kit.folder / f"{name.replace(' ', '-')}.log"
    # What follows the interpreter's own path of the benchmark must not reach a peer of another environment.
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or words[0] == sys.executable}
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
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
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def left_out(name: str, error: CannotStartError) -> LeftOut:
    return LeftOut(NAMES[name], " ".join(str(error).split())[:200])
