"""What a worker takes of its machine, by settings, pool, affinity and quota."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from infaas_worker.machine import cores_to_use, default_listen, prepare_socket, worker_id
from infaas_worker.main import find_place
from infaas_worker.monitor import stall_ratio
from infaas_worker.registration import retry_wait_s

from infaas.clock import SystemClock
from infaas.domain.ids import WorkerId
from infaas.errors import SettingsError
from infaas.own_address import advertised
from infaas.settings import Settings
from infaas.tokens import Tokens


@pytest.mark.parametrize(
    ("wanted", "quota", "got"),
    [
        (None, None, (2, 3, 5)),
        (2, None, (2, 3)),
        (None, 1.5, (2,)),
        (None, 0.2, (2,)),
        (None, 2.0, (2, 3)),
        (None, 64.0, (2, 3, 5)),
        (3, 1.0, (2, 3, 5)),
    ],
)
def test_cores_are_those_wanted_else_those_that_affinity_and_quota_leave(wanted, quota, got):
    assert cores_to_use(wanted, [5, 3, 2], quota) == got


def test_more_cores_than_the_process_may_run_on_are_refused():
    with pytest.raises(SettingsError, match="4 cores are wanted, this process may run on 3"):
        cores_to_use(4, [2, 3, 5], None)


def test_a_workers_name_is_given_or_made_of_pool_and_host():
    assert worker_id("w7", "local", "h") == "w7"
    assert worker_id(None, "local", "my host!") == "local-my-host"


def test_a_socket_path_too_long_for_the_kernel_moves_to_a_temporary_folder(tmp_path: Path):
    short = default_listen(Path("/tmp/s"), WorkerId("w1"))
    assert short == "unix:/tmp/s/run/worker-w1.sock"
    deep = tmp_path / ("d" * 120)
    long = default_listen(deep, WorkerId("w1"))
    assert len(long) <= 107
    assert long == default_listen(deep, WorkerId("w1"))
    assert long != default_listen(deep, WorkerId("w2"))


def test_a_stale_socket_is_removed_and_anything_else_is_not(tmp_path: Path):
    path = tmp_path / "run" / "w.sock"
    prepare_socket(f"unix:{path}")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with pytest.raises(SettingsError, match="another process listens"):
        prepare_socket(f"unix:{path}")
    listener.close()
    prepare_socket(f"unix:{path}")
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(SettingsError, match="no socket"):
        prepare_socket(f"unix:{path}")
    assert path.read_text() == "precious"


def test_the_place_comes_from_settings_and_pool(tmp_path: Path):
    settings = Settings.model_validate(
        {
            "state_dir": str(tmp_path),
            "worker": {"pool": "big", "advertise": "host:9"},
            "pools": {"big": {"cores": 1, "memory_bytes": 2**21, "price_usd_per_hour": 0.5}},
        }
    )
    place = find_place(settings, SystemClock())
    record = place.record
    assert (record.pool, record.cores, record.memory_bytes, record.price_usd_per_hour) == ("big", 1, 2**21, 0.5)
    assert (record.address, record.pid, len(place.core_ids)) == ("host:9", os.getpid(), 1)
    with pytest.raises(SettingsError, match="'nope' is not among the pools"):
        find_place(Settings.model_validate({"worker": {"pool": "nope"}}), SystemClock())


def test_stall_is_the_share_of_time_that_was_late():
    assert stall_ratio([]) == 0.0
    assert stall_ratio([(0.02, 0.021)] * 5, tolerated_s=0.002) == 0.0
    assert stall_ratio([(0.02, 0.042), (0.02, 0.02)], tolerated_s=0.002) == pytest.approx(0.02 / 0.062)


def test_waiting_for_the_store_grows_to_a_limit_and_is_jittered():
    assert retry_wait_s(1, 1.0, 0.0) == 1.0
    assert retry_wait_s(2, 1.0, 0.5) == 1.5
    assert retry_wait_s(99, 1.0, 0.0) == 5.0


@pytest.mark.parametrize(
    ("metadata", "token", "allowed"),
    [
        (None, None, True),
        ((("authorization", "Bearer t"),), None, True),
        ((("authorization", "Bearer t"),), "t", True),
        ((("Authorization", b"Bearer t"),), "t", True),
        ((("authorization", "Bearer x"),), "t", False),
        ((("authorization", "t"),), "t", False),
        (None, "t", False),
    ],
)
def test_only_the_right_bearer_token_is_let_in(metadata, token, allowed):
    assert Tokens.of(token).accepts_metadata(metadata) is allowed


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def found(host: str, port: object, **_: object) -> list[tuple[object, ...]]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_a_worker_advertises_the_address_that_its_own_name_stands_for(monkeypatch):
    resolves_to(monkeypatch, "127.0.1.1", "10.89.0.7")
    assert advertised("auto:9000") == "10.89.0.7:9000"
    resolves_to(monkeypatch, "fe80::1%eth0", "fd00::7")
    assert advertised("auto:9000") == "[fd00::7]:9000"


def test_whoever_names_an_address_advertises_that_one(monkeypatch):
    resolves_to(monkeypatch)
    for named in ("worker-1:9000", "unix:/run/auto:9000", "auto.example:9000"):
        assert advertised(named) == named


@pytest.mark.parametrize(
    ("addresses", "said"), [((), "does not resolve"), (("127.0.1.1",), "resolves to 127.0.1.1 only")]
)
def test_a_name_that_nobody_else_could_use_is_not_advertised(monkeypatch, addresses, said):
    resolves_to(monkeypatch, *addresses)
    with pytest.raises(SettingsError, match=f"its name 'box' {said}"):
        advertised("auto:9000")
