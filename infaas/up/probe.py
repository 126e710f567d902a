"""Whether the program that these settings describe serves on this machine: what a container's health check asks.

The question takes the program's own settings, so that a check needs no address of its own to be kept in step.
"""

from __future__ import annotations

from infaas.errors import SettingsError, UnavailableError
from infaas.exposure import host_of
from infaas.own_address import advertised
from infaas.settings import Settings
from infaas.up import pulse
from infaas.up.health import get
from infaas.up.record import read_endpoints

GENERATOR = "generator"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "localhost"}
"""Addresses to listen on that nobody can call, and what reaches the same listener."""


def check_controller(settings: Settings, timeout_s: float = 3.0) -> str:
    """Where it serves. Raises UnavailableError when it does not."""
    endpoints = read_endpoints(settings.state_dir)
    if endpoints is None:
        raise UnavailableError(f"no controller has announced itself in {str(settings.state_dir)!r}")
    status, _ = get(endpoints, "/v2/health/live", timeout_s=timeout_s)
    if status != 200:
        raise UnavailableError(f"the controller at {endpoints.url} does not answer as a live one (status {status})")
    return endpoints.url


def check_worker(settings: Settings, timeout_s: float = 3.0) -> str:
    """Where it serves. Raises UnavailableError when it does not, SettingsError when its address is left to itself."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from infaas.rpc.channel import open_blocking_channel
    from infaas.rpc.tls import open_tls

    listen = settings.worker.listen
    if listen is None:
        raise SettingsError("a worker is checked at worker.listen, which is not set")
    address = dialled(listen)
    with open_blocking_channel(address, open_tls(settings), certified_name(settings, listen)) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise UnavailableError(f"the worker at {address} does not answer: {error.details()}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the worker at {address} does not serve (it starts or drains)")
    return address


def certified_name(settings: Settings, listen: str) -> str | None:
    """What a worker's certificate is for: the host that controllers call it by. None without certificates, and where
    all have one name. Raises SettingsError when it is to find its address itself and cannot."""
    if settings.tls.cert_file is None or settings.tls.peer_name is not None:
        return None
    host = host_of(advertised(settings.worker.advertise or listen))
    return None if host is None else host.strip("[]")


def check_generator(settings: Settings) -> int:
    """Its process id. Raises UnavailableError when its loop has stood still for a while, or there is none."""
    found = pulse.read(settings.state_dir, GENERATOR)
    if found is None:
        raise UnavailableError(f"no generator lives in {str(settings.state_dir)!r}")
    if found.age_s > pulse.LOST_AFTER_S:
        raise UnavailableError(f"the generator (process {found.pid}) has given no sign of life for {found.age_s:.0f} s")
    return found.pid


def dialled(listen: str) -> str:
    """What a caller on this machine dials to reach a listener."""
    host = host_of(listen)
    if host is None or host not in _EVERYWHERE:
        return listen
    return _EVERYWHERE[host] + listen[len(host) :]
