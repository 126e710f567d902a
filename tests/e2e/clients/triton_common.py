"""What every tritonclient must find, written once; each client's own script says how it is made and called.

Run a client's script in a process of its own: `python triton_http.py --url 127.0.0.1:8000`. It needs the model `simple`
(INT32 `INPUT0`, `INPUT1` [-1,16] to their sum and difference), prints a line per check and ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

SLO = {
    "x-infaas-slo-latency-ms": "20000",
    "x-infaas-slo-accuracy-min": "0",
    "x-infaas-objective": "latency",
    "x-infaas-priority": "critical",
    "x-infaas-fallback": "allow",
    "x-request-id": "from-tritonclient",
}

Check = Callable[["Probe"], Awaitable[None]]


class Probe:
    """One client under test. `module` is its tritonclient module; results are plain dicts for both protocols."""

    def __init__(self, module: Any, client: Any, model: str, token: str | None, *, is_grpc: bool) -> None:
        self.module = module
        self.client = client
        self.model = model
        self.is_grpc = is_grpc
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        options["headers"] = {**self.headers, **(options.get("headers") or {})}
        result = getattr(self.client, name)(*args, **options)
        return await result if inspect.isawaitable(result) else result

    async def ask(self, name: str, *args: Any, **options: Any) -> Any:
        """A call that returns a document."""
        if self.is_grpc:
            options["as_json"] = True
        return await self.call(name, *args, **options)

    def inputs(self, items: int = 1, *, binary: bool = True, seed: int = 0) -> tuple[list[Any], list[np.ndarray]]:
        rng = np.random.default_rng(seed)
        arrays = [rng.integers(-1000, 1000, (items, 16), dtype=np.int32) for _ in range(2)]
        made = []
        for name, array in zip(("INPUT0", "INPUT1"), arrays, strict=True):
            tensor = self.module.InferInput(name, list(array.shape), "INT32")
            if self.is_grpc:
                tensor.set_data_from_numpy(array)
            else:
                tensor.set_data_from_numpy(array, binary_data=binary)
            made.append(tensor)
        return made, arrays

    def output(self, name: str, *, binary: bool = True, classes: int = 0) -> Any:
        if self.is_grpc:
            return self.module.InferRequestedOutput(name, class_count=classes)
        return self.module.InferRequestedOutput(name, binary_data=binary, class_count=classes)

    async def expect_error(self, needle: str, statuses: tuple[str, ...], name: str, *args: Any, **options: Any) -> None:
        try:
            await self.call(name, *args, **options)
        except InferenceServerException as error:
            found = error
        else:
            raise AssertionError(f"{name} should have failed with {statuses}")
        assert found.status() in statuses, (found.status(), found.message())
        assert needle in found.message(), found.message()


def _sums(result: Any, arrays: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), arrays[0] + arrays[1])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), arrays[0] - arrays[1])


async def health(probe: Probe) -> None:
    assert await probe.call("is_server_live") is True
    assert await probe.call("is_server_ready") is True
    assert await probe.call("is_model_ready", probe.model) is True
    assert await probe.call("is_model_ready", probe.model, "1") is True
    assert await probe.call("is_model_ready", "no-such-model") is False


async def server_metadata(probe: Probe) -> None:
    document = await probe.ask("get_server_metadata")
    assert document["name"] == "infaas"
    wanted = {"binary_tensor_data", "model_repository", "model_configuration", "statistics", "schedule_policy"}
    assert wanted | {"parameters"} <= set(document["extensions"]), document


async def model_metadata(probe: Probe) -> None:
    document = await probe.ask("get_model_metadata", probe.model)
    assert document["name"] == probe.model
    assert "1" in document["versions"]
    tensors = [(t["name"], t["datatype"], [int(n) for n in t["shape"]]) for t in document["inputs"]]
    assert tensors == [("INPUT0", "INT32", [-1, 16]), ("INPUT1", "INT32", [-1, 16])], tensors
    assert [t["name"] for t in document["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    again = await probe.ask("get_model_metadata", probe.model, "1")
    assert again["inputs"] == document["inputs"]


async def config(probe: Probe) -> None:
    document = await probe.ask("get_model_config", probe.model)
    document = document.get("config", document)
    assert document["name"] == probe.model
    assert document["max_batch_size"] >= 1
    inputs = [(t["name"], t["data_type"], [int(n) for n in t["dims"]]) for t in document["input"]]
    assert inputs == [("INPUT0", "TYPE_INT32", [16]), ("INPUT1", "TYPE_INT32", [16])], inputs


async def infer(probe: Probe) -> None:
    for items in (1, 3):
        for binary in (True, False):
            inputs, arrays = probe.inputs(items, binary=binary, seed=items)
            outputs = [probe.output("OUTPUT0", binary=binary), probe.output("OUTPUT1", binary=not binary)]
            _sums(await probe.call("infer", probe.model, inputs, outputs=outputs), arrays)
            _sums(await probe.call("infer", probe.model, inputs, model_version="1"), arrays)


async def infer_echoes(probe: Probe) -> None:
    inputs, arrays = probe.inputs()
    result = await probe.call("infer", probe.model, inputs, outputs=[probe.output("OUTPUT1")], request_id="my id 7")
    response = result.get_response(as_json=True) if probe.is_grpc else result.get_response()
    assert response["id"] == "my id 7"
    assert response["model_name"] == probe.model
    assert response["model_version"] == "1"
    assert [output["name"] for output in response["outputs"]] == ["OUTPUT1"]
    assert response["parameters"]["variant"], response
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), arrays[0] - arrays[1])


async def infer_with_requirements(probe: Probe) -> None:
    inputs, arrays = probe.inputs(2)
    _sums(await probe.call("infer", probe.model, inputs, headers=SLO), arrays)
    _sums(await probe.call("infer", probe.model, inputs, timeout=20_000_000, priority=1), arrays)
    twins = {"slo_latency_ms": 20000, "slo_accuracy_min": 0.0, "objective": "latency"}
    _sums(await probe.call("infer", probe.model, inputs, parameters=twins), arrays)
    explained = await probe.call("infer", probe.model, inputs, headers={"x-infaas-explain": "true"})
    response = explained.get_response(as_json=True) if probe.is_grpc else explained.get_response()
    assert "decision" in response["parameters"], response


async def compression(probe: Probe) -> None:
    """Both ways over REST; over gRPC the message itself is compressed."""
    for coding in ("gzip", "deflate"):
        inputs, arrays = probe.inputs(8, seed=7)
        if probe.is_grpc:
            _sums(await probe.call("infer", probe.model, inputs, compression_algorithm=coding), arrays)
            continue
        for options in (
            {"request_compression_algorithm": coding},
            {"response_compression_algorithm": coding},
            {"request_compression_algorithm": coding, "response_compression_algorithm": coding},
        ):
            result = await probe.call("infer", probe.model, inputs, **options)
            _sums(result, arrays)


async def classification(probe: Probe) -> None:
    inputs, arrays = probe.inputs(2)
    outputs = [probe.output("OUTPUT0", binary=False, classes=3)]
    result = await probe.call("infer", probe.model, inputs, outputs=outputs)
    found = result.as_numpy("OUTPUT0")
    assert found.shape == (2, 3)
    total = arrays[0] + arrays[1]
    for row, classes in zip(total, found, strict=True):
        texts = [c.decode() if isinstance(c, bytes) else str(c) for c in classes]
        assert [int(text.split(":")[0]) for text in texts] == sorted(row.tolist(), reverse=True)[:3]


async def statistics(probe: Probe) -> None:
    async def count() -> int:
        document = await probe.ask("get_inference_statistics", probe.model)
        rows = [row for row in document["model_stats"] if row["name"] == probe.model]
        assert rows, document
        return sum(int(row.get("inference_count", 0)) for row in rows)

    before = await count()
    inputs, _ = probe.inputs(3)
    result = await probe.call("infer", probe.model, inputs)
    assert await count() == before + 3
    response = result.get_response(as_json=True) if probe.is_grpc else result.get_response()
    served = response["parameters"]["variant"]
    served = served["string_param"] if isinstance(served, dict) else served
    everything = await probe.ask("get_inference_statistics")
    assert {served, probe.model} <= {row["name"] for row in everything["model_stats"]}, (served, everything)


async def repository(probe: Probe) -> None:
    document = await probe.ask("get_model_repository_index")
    rows = document["models"] if probe.is_grpc else document
    assert {"READY"} == {row["state"] for row in rows if row["name"] == probe.model}, rows
    await probe.expect_error("failed to load", ("404", "StatusCode.NOT_FOUND"), "load_model", "no-such-model")
    await probe.expect_error(
        "failed to load", ("501", "StatusCode.UNIMPLEMENTED"), "load_model", probe.model, config='{"backend": "x"}'
    )
    await probe.call("unload_model", probe.model)
    assert await probe.call("is_model_ready", probe.model) is False
    await probe.call("load_model", probe.model)
    assert await probe.call("is_model_ready", probe.model) is True
    inputs, arrays = probe.inputs()
    _sums(await probe.call("infer", probe.model, inputs), arrays)


async def errors(probe: Probe) -> None:
    inputs, _ = probe.inputs()
    bad, lost = ("400", "StatusCode.INVALID_ARGUMENT"), ("404", "StatusCode.NOT_FOUND")
    await probe.expect_error("no-such-model", lost, "infer", "no-such-model", inputs)
    await probe.expect_error("version", lost, "infer", probe.model, inputs, model_version="999")
    await probe.expect_error("INPUT1", bad, "infer", probe.model, inputs[:1])
    await probe.expect_error("OUTPUT9", bad, "infer", probe.model, inputs, outputs=[probe.output("OUTPUT9")])
    wrong = probe.module.InferInput("INPUT1", [1, 16], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 16), np.float32))
    await probe.expect_error("FP32", bad, "infer", probe.model, [inputs[0], wrong])
    short = probe.module.InferInput("INPUT1", [1, 15], "INT32")
    short.set_data_from_numpy(np.zeros((1, 15), np.int32))
    await probe.expect_error("[1, 15]", bad, "infer", probe.model, [inputs[0], short])
    for header, value in (("x-infaas-slo-latency-ms", "fast"), ("x-infaas-objective", "best"), ("x-infaas-slo", "1")):
        await probe.expect_error(header, bad, "infer", probe.model, inputs, headers={header: value})
    never = ("422", "StatusCode.FAILED_PRECONDITION")
    await probe.expect_error("", never, "infer", probe.model, inputs, headers={"x-infaas-max-cost": "0"})
    await probe.expect_error(
        "shared memory", ("501", "StatusCode.UNIMPLEMENTED"), "register_system_shared_memory", "region", "/region", 64
    )
    await probe.expect_error(
        "sequence", ("501", "StatusCode.UNIMPLEMENTED"), "infer", probe.model, inputs, sequence_id=7
    )


CHECKS: tuple[Check, ...] = (
    health,
    server_metadata,
    model_metadata,
    config,
    infer,
    infer_echoes,
    infer_with_requirements,
    compression,
    classification,
    statistics,
    repository,
    errors,
)


def main(module: Any, *, is_grpc: bool, extra: tuple[Check, ...] = ()) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="host:port")
    parser.add_argument("--model", default="simple")
    parser.add_argument("--token")
    parser.add_argument("--skip", nargs="*", default=[], help="names of checks to leave out")
    options = parser.parse_args()
    return asyncio.run(_run(module, options, is_grpc, (*CHECKS, *extra)))


async def _run(module: Any, options: argparse.Namespace, is_grpc: bool, checks: tuple[Check, ...]) -> int:
    client = module.InferenceServerClient(options.url)
    probe = Probe(module, client, options.model, options.token, is_grpc=is_grpc)
    failed = 0
    for check in checks:
        if check.__name__ in options.skip:
            continue
        try:
            await check(probe)
            print(f"ok {check.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {check.__name__}\n{traceback.format_exc()}", flush=True)
    closing = client.close()
    if inspect.isawaitable(closing):
        await closing
    return 1 if failed else 0
