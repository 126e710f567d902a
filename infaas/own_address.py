"""Where a worker says that controllers reach it, also when it has to find that out itself: it says so, and its health
check asks for a certificate of that name."""

from __future__ import annotations

import ipaddress
import socket

from infaas.errors import SettingsError

OWN_ADDRESS = "auto"
"""As the host that a worker advertises: the address that its own host's name stands for."""


def advertised(advertise: str) -> str:
    """What controllers dial. A container knows its address when it runs, and not before.

    Raises SettingsError when the host's name stands for no address that others could reach.
    """
    named, _, port = advertise.rpartition(":")
    if named != OWN_ADDRESS:
        return advertise
    host = socket.gethostname()
    try:
        found = [str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        found, why = [], f"does not resolve ({error.strerror})"
    else:
        why = f"resolves to {', '.join(found)} only, which no other machine reaches"
    for address in found:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if not parsed.is_loopback and not parsed.is_link_local:
            return f"[{address}]:{port}" if parsed.version == 6 else f"{address}:{port}"
    raise SettingsError(
        f"worker.advertise {advertise!r} asks for this machine's own address, but its name {host!r} {why}: "
        "write the address that controllers reach"
    )
