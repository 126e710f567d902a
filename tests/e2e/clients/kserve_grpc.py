"""kserve's gRPC inference client."""

from __future__ import annotations

import sys
from typing import Any

from kserve import InferenceGRPCClient
from kserve_common import Call, Probe, main


def make(url: str) -> tuple[Any, Call]:
    client = InferenceGRPCClient(url=url, timeout=60)

    async def infer(request: Any, headers: dict[str, str] | None) -> Any:
        return await client.infer(request, headers=tuple(headers.items()) if headers else None)

    return client, infer


async def health(probe: Probe) -> None:
    assert await probe.client.is_server_live() is True
    assert await probe.client.is_server_ready() is True
    assert await probe.client.is_model_ready(probe.model) is True
    assert await probe.client.is_model_ready("no-such-model") is False


if __name__ == "__main__":
    sys.exit(main(make, health))
