"""A channel for gRPC calls to a worker: secured where connections of the hop to the same address are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from infaas.exposure import host_of
from infaas.rpc.tls import Tls

Options = Sequence[tuple[str, Any]]


def open_channel(address: str, tls: Tls | None, options: Options = ()) -> Any:
    """For a loop. Its owner closes it."""
    if tls is None or host_of(address) is None:
        return grpc.aio.insecure_channel(address, options=list(options))
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=[*options, *_named(tls.peer_name)])


def open_blocking_channel(address: str, tls: Tls | None, name: str | None = None) -> Any:
    """For a thread. Its owner closes it. `name`: what the certificate is to be for, when it is not the host."""
    if tls is None or host_of(address) is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, tls.channel_credentials(), options=_named(tls.peer_name or name))


def _named(name: str | None) -> list[tuple[str, Any]]:
    return [] if name is None else [("grpc.ssl_target_name_override", name)]
