"""What both of kserve's inference clients must find; each client's own script says how it is made and called.

Run a script in a process and an environment of its own: `python kserve_rest.py --url http://HOST:PORT --model simple`.
It needs the model `simple`, prints a line per check and ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest

REQUIREMENTS = {
    "x-infaas-slo-latency-ms": "20000",
    "x-infaas-slo-accuracy-min": "0",
    "x-infaas-objective": "latency",
    "x-request-id": "from-kserve",
}

Call = Callable[..., Awaitable[Any]]


class Probe:
    """One client under test. `infer(request, headers)` answers an InferResponse or raises what the client raises."""

    def __init__(self, client: Any, infer: Call, url: str, model: str) -> None:
        self.client = client
        self.infer = infer
        self.url = url
        self.model = model

    def request(self, items: int = 1, *, is_binary: bool = True, seed: int = 0, model: str = "") -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        arrays = [rng.integers(-1000, 1000, (items, 16), dtype=np.int32) for _ in range(2)]
        inputs = []
        for name, array in zip(("INPUT0", "INPUT1"), arrays, strict=True):
            tensor = InferInput(name, list(array.shape), "INT32")
            tensor.set_data_from_numpy(array, binary_data=is_binary)
            inputs.append(tensor)
        return InferRequest(model_name=model or self.model, infer_inputs=inputs, request_id=f"k-{seed}"), arrays


def sums(response: Any, arrays: Any) -> None:
    found = {output.name: output.as_numpy() for output in response.outputs}
    np.testing.assert_array_equal(found["OUTPUT0"].reshape(arrays[0].shape), arrays[0] + arrays[1])
    np.testing.assert_array_equal(found["OUTPUT1"].reshape(arrays[0].shape), arrays[0] - arrays[1])


async def infer(probe: Probe) -> None:
    for items in (1, 3):
        for is_binary in (True, False):
            request, arrays = probe.request(items, is_binary=is_binary, seed=items)
            response = await probe.infer(request, None)
            assert response.model_name == probe.model, response.model_name
            assert response.id == f"k-{items}", response.id
            sums(response, arrays)


async def infer_with_requirements(probe: Probe) -> None:
    request, arrays = probe.request(2, seed=9)
    sums(await probe.infer(request, REQUIREMENTS), arrays)


async def many_in_flight(probe: Probe) -> None:
    made = [probe.request(1, seed=seed) for seed in range(16)]
    answers = await asyncio.gather(*(probe.infer(request, None) for request, _ in made))
    for (request, arrays), response in zip(made, answers, strict=True):
        assert response.id == request.id
        sums(response, arrays)


async def errors(probe: Probe) -> None:
    for model, headers, words in (
        ("no-such-model", None, "no-such-model"),
        ("", {"x-infaas-slo-latency-ms": "soon"}, "x-infaas-slo-latency-ms"),
        ("", {"x-infaas-max-cost": "0"}, "cost"),
    ):
        request, _ = probe.request(model=model)
        try:
            await probe.infer(request, headers)
        except Exception as error:  # whatever the client makes of it: its caller must be able to read why
            said = f"{error} {getattr(getattr(error, 'response', None), 'text', '')}"
            assert words in said, said
        else:
            raise AssertionError(f"{model or headers} should have failed")


def main(make: Callable[[str], tuple[Any, Call]], health: Callable[[Probe], Awaitable[None]]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="simple")
    options = parser.parse_args()
    return asyncio.run(_run(make, health, options))


async def _run(make: Any, health: Any, options: argparse.Namespace) -> int:
    client, call = make(options.url)
    probe = Probe(client, call, options.url, options.model)
    failed = 0
    for check in (health, infer, infer_with_requirements, many_in_flight, errors):
        try:
            await check(probe)
            print(f"ok {check.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {check.__name__}\n{traceback.format_exc()}", flush=True)
    await client.close()
    return 1 if failed else 0
