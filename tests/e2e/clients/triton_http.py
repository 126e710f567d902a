"""tritonclient over HTTP (gevent)."""

from __future__ import annotations

import sys

import tritonclient.http as module
from triton_common import Probe, _sums, main


async def many_in_flight(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(16)]
    client = module.InferenceServerClient(
        probe.client._parsed_url.host + f":{probe.client._parsed_url.port}", concurrency=8
    )
    calls = [client.async_infer(probe.model, inputs, headers=probe.headers) for inputs, _ in made]
    for call, (_, arrays) in zip(calls, made, strict=True):
        _sums(call.get_result(), arrays)
    client.close()


async def compressed(probe: Probe) -> None:
    for algorithm in ("gzip", "deflate"):
        inputs, arrays = probe.inputs(4)
        result = await probe.call(
            "infer",
            probe.model,
            inputs,
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        _sums(result, arrays)


if __name__ == "__main__":
    sys.exit(main(module, is_grpc=False, extra=(many_in_flight, compressed)))
