"""Ports that processes share: real sockets of this machine, on ports that it picks."""

from __future__ import annotations

import socket

import pytest
from infaas_controller.listeners import bind

from infaas.errors import SettingsError
from infaas.processes.ports import port_of, reserve

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """As a process of the controller does."""
    listener = bind(HOST, port, "controller.http_port", is_shared=True)
    listener.listen(200)
    return listener


def test_a_port_is_picked_once_and_several_listen_on_it() -> None:
    with reserve(HOST, 0, "controller.http_port") as holder:
        port = port_of(holder)
        with listen(port) as first, listen(port) as second:
            callers = [socket.create_connection((HOST, port)) for _ in range(100)]
            accepted = [0, 0]
            for place, listener in enumerate((first, second)):
                try:
                    while True:
                        listener.accept()[0].close()
                        accepted[place] += 1
                except BlockingIOError:
                    continue
            for caller in callers:
                caller.close()
        assert sum(accepted) == 100
        assert min(accepted) > 10, "connections are spread"


def test_nobody_is_connected_while_no_process_listens() -> None:
    with reserve(HOST, 0, "controller.http_port") as holder:
        bound = bind(HOST, port_of(holder), "controller.http_port", is_shared=True)
        with bound, pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port_of(holder)))


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_port_that_somebody_has_is_refused_even_if_he_would_share_it(is_shared: bool) -> None:
    with socket.socket() as other:
        if is_shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, 0))
        other.listen(1)
        with pytest.raises(SettingsError, match=r"cannot listen on 127.0.0.1:\d+ \(controller.grpc_port\): Address"):
            reserve(HOST, port_of(other), "controller.grpc_port")


def test_a_lone_process_has_its_port_to_itself_also_beside_who_would_share_it() -> None:
    with bind(HOST, 0, "controller.http_port") as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, port_of(listener)))


def test_a_port_stays_taken_while_all_processes_are_down_and_is_free_when_it_is_given_back() -> None:
    holder = reserve(HOST, 0, "controller.http_port")
    port = port_of(holder)
    listen(port).close()
    with pytest.raises(SettingsError):
        bind(HOST, port, "controller.http_port")
    with pytest.raises(SettingsError):
        reserve(HOST, port, "controller.http_port")
    holder.close()
    reserve(HOST, port, "controller.http_port").close()


def test_connections_of_a_process_before_do_not_keep_the_next_one_out() -> None:
    with reserve(HOST, 0, "controller.http_port") as holder:
        port = port_of(holder)
        with listen(port) as before, socket.create_connection((HOST, port)):
            before.setblocking(True)
            accepted, _ = before.accept()
        with accepted, listen(port):
            pass
    accepted.close()
