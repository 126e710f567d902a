"""tritonclient over gRPC, the asyncio form, with a stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import tritonclient.grpc.aio as module
from triton_common import Probe, _sums, main


async def many_in_flight(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(16)]
    results = await asyncio.gather(*(probe.call("infer", probe.model, inputs) for inputs, _ in made))
    for result, (_, arrays) in zip(results, made, strict=True):
        _sums(result, arrays)


async def stream(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(8)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, (inputs, _) in enumerate(made):
            yield {"model_name": probe.model, "inputs": inputs, "request_id": str(number)}

    wanted = {str(number): arrays for number, (_, arrays) in enumerate(made)}
    async for result, error in probe.client.stream_infer(requests(), headers=probe.headers):
        assert error is None, error
        _sums(result, wanted.pop(result.get_response().id))
    assert not wanted


if __name__ == "__main__":
    sys.exit(main(module, is_grpc=True, extra=(many_in_flight, stream)))
