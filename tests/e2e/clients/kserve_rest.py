"""kserve's REST inference client, in protocol version 2."""

from __future__ import annotations

import sys
from typing import Any

from kserve import InferenceRESTClient, RESTConfig
from kserve_common import Call, Probe, main


def make(url: str) -> tuple[Any, Call]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))

    async def infer(request: Any, headers: dict[str, str] | None) -> Any:
        return await client.infer(url, request, model_name=request.model_name, headers=headers)

    return client, infer


async def health(probe: Probe) -> None:
    assert await probe.client.is_server_live(probe.url) is True
    assert await probe.client.is_server_ready(probe.url) is True
    assert await probe.client.is_model_ready(probe.url, probe.model) is True


if __name__ == "__main__":
    sys.exit(main(make, health))
