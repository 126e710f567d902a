"""Ports that several processes listen on: chosen and taken once, by the master, before any of them starts.

A port is first bound for itself alone, so that one that is taken is an error and not a silent share of somebody else's
connections. Then it is opened to sockets of this user that ask for the same (`SO_REUSEPORT`), which the processes' are.
The master's socket never listens, so no connection ever reaches it; it keeps the port while all processes are down.
"""

from __future__ import annotations

import socket

from infaas.errors import SettingsError


def reserve(host: str, port: int, setting: str) -> socket.socket:
    """Bound and not listening; `getsockname` says which port, for 0. Close it to give the port back.

    Raises SettingsError naming the port, the setting and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of a controller that was here before may still be ending; they must not keep us out.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        holder.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}; "
            f"free the port, set {setting} to another one, or to 0 for any free port"
        ) from error
    return holder


def port_of(holder: socket.socket) -> int:
    return int(holder.getsockname()[1])
