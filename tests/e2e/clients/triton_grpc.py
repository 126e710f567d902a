"""tritonclient over gRPC, with callbacks and streams."""

from __future__ import annotations

import queue
import sys
from typing import Any

import tritonclient.grpc as module
from triton_common import Probe, _sums, main


async def many_in_flight(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(16)]
    done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for number, (inputs, _) in enumerate(made):
        probe.client.async_infer(
            probe.model,
            inputs,
            lambda result, error, number=number: done.put((number, result, error)),
            headers=probe.headers,
        )
    for _ in made:
        number, result, error = done.get(timeout=30)
        assert error is None, error
        _sums(result, made[number][1])


async def stream(probe: Probe) -> None:
    made = [probe.inputs(1, seed=seed) for seed in range(8)]
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    probe.client.start_stream(lambda result, error: done.put((result, error)), headers=probe.headers)
    for number, (inputs, _) in enumerate(made):
        probe.client.async_stream_infer(probe.model, inputs, request_id=str(number))
    probe.client.async_stream_infer(probe.model, made[0][0][:1], request_id="bad")
    probe.client.async_stream_infer(probe.model, made[0][0], request_id="last")
    wanted = {str(number): arrays for number, (_, arrays) in enumerate(made)} | {"last": made[0][1]}
    refused = 0
    for _ in range(len(wanted) + 1):  # as each completes; the id says whose it is
        result, error = done.get(timeout=30)
        if error is not None:
            assert "INPUT1" in error.message(), error
            refused += 1
        else:
            _sums(result, wanted.pop(result.get_response().id))
    assert (refused, wanted) == (1, {})
    for inputs, _ in made:  # without ids: in their order
        probe.client.async_stream_infer(probe.model, inputs)
    for _, arrays in made:
        result, error = done.get(timeout=30)
        assert error is None, error
        _sums(result, arrays)
    probe.client.stop_stream()


async def deadline(probe: Probe) -> None:
    inputs, arrays = probe.inputs()
    _sums(await probe.call("infer", probe.model, inputs, client_timeout=30.0), arrays)


if __name__ == "__main__":
    sys.exit(main(module, is_grpc=True, extra=(many_in_flight, stream, deadline)))
