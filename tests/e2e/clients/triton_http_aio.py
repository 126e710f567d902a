"""tritonclient over HTTP, the asyncio form (aiohttp)."""

from __future__ import annotations

import asyncio
import sys

import tritonclient.http.aio as module
from triton_common import Probe, _sums, main


async def many_in_flight(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(16)]
    results = await asyncio.gather(*(probe.call("infer", probe.model, inputs) for inputs, _ in made))
    for result, (_, arrays) in zip(results, made, strict=True):
        _sums(result, arrays)


if __name__ == "__main__":
    sys.exit(main(module, is_grpc=False, extra=(many_in_flight,)))
