"""Who could reach a listener: beyond loopback, only programs that ask for a credential may listen."""

from __future__ import annotations

import ipaddress

from infaas.errors import SettingsError
from infaas.settings import Settings

_REMEDY = "Set auth.token_file (or INFAAS_AUTH__TOKEN)"
_WORKERS_REMEDY = "Set auth.cluster_token_file or auth.token_file, or tls.cert_file, tls.key_file and tls.ca_file"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(listen: str) -> str | None:
    """The host in `host:port`; None for a unix socket, which only this machine can reach."""
    if listen.startswith(("unix:", "unix-abstract:")):
        return None
    return listen.rpartition(":")[0]


def require_safe_binding(setting: str, host: str, token: str | None, *, remedy: str = _REMEDY) -> None:
    """Raises SettingsError, naming the setting, when anyone on the network could call without a credential."""
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"{setting} {host!r} is not a loopback address; without a credential only loopback may be bound. "
            f"{remedy}, or bind 127.0.0.1"
        )


def require_safe_worker(settings: Settings) -> None:
    """The same for where a worker listens, whose callers show the cluster's token or a certificate."""
    host = None if settings.worker.listen is None else host_of(settings.worker.listen)
    if host is not None and settings.tls.cert_file is None:
        require_safe_binding("worker.listen", host, settings.cluster_token(), remedy=_WORKERS_REMEDY)
