from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from infaas.errors import ConflictError, SettingsError
from infaas.settings import Settings, load_settings
from infaas.up import preflight
from infaas.up.record import FolderLock


def settings_with(**controller: object) -> Settings:
    return load_settings(environ={}, overrides={"controller": controller})


@pytest.mark.parametrize("would_share", [False, True], ids=["alone", "would share"])
def test_a_taken_port_is_named_with_its_setting_its_flag_and_its_holder(would_share: bool) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(would_share))
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        with pytest.raises(ConflictError) as caught:
            preflight.check_ports(settings_with(http_port=0, grpc_port=port, metrics_port=0))

    assert caught.value.text == (
        f"port {port} on 127.0.0.1 is taken by pid {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}): "
        "set controller.grpc_port or --grpc-port to another one (--grpc-port 0 picks a free one)"
    )


def test_every_taken_port_is_reported_at_once() -> None:
    with socket.socket() as one, socket.socket() as two:
        for holder in (one, two):
            holder.bind(("127.0.0.1", 0))
            holder.listen()

        with pytest.raises(ConflictError) as caught:
            preflight.check_ports(
                settings_with(http_port=one.getsockname()[1], grpc_port=two.getsockname()[1], metrics_port=0)
            )

    assert len(caught.value.problems) == 2


def test_the_same_port_twice_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConflictError, match=r"given twice: controller\.http_port and controller\.grpc_port"):
        preflight.check_ports(settings_with(http_port=port, grpc_port=port, metrics_port=0))


def test_free_ports_pass_and_stay_free() -> None:
    preflight.check_ports(settings_with(http_port=0, grpc_port=0, metrics_port=0))


def test_an_address_of_another_machine_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="not an address of this machine"):
        preflight.check_ports(settings_with(host="192.0.2.1", http_port=18_000))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_without_a_token_only_loopback_may_be_bound(host: str) -> None:
    with pytest.raises(SettingsError, match="only loopback may be bound"):
        preflight.check_exposure(settings_with(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_token(host: str) -> None:
    preflight.check_exposure(settings_with(host=host))


def test_with_a_token_any_address_may_be_bound() -> None:
    preflight.check_exposure(
        load_settings(environ={}, overrides={"controller": {"host": "0.0.0.0"}, "auth": {"token": "secret"}})
    )


def test_a_triton_server_cannot_belong_to_one_of_several_programs_that_are_told_the_same() -> None:
    worker = {"triton_url": "grpc://127.0.0.1:8001"}
    preflight.check_sharing(load_settings(environ={}, overrides={"worker": worker}))
    with pytest.raises(SettingsError, match="triton_private cannot hold here"):
        preflight.check_sharing(load_settings(environ={}, overrides={"worker": worker | {"triton_private": True}}))


def test_a_private_triton_server_has_to_be_named() -> None:
    with pytest.raises(SettingsError, match="triton_private needs triton_url"):
        load_settings(environ={}, overrides={"worker": {"triton_private": True}})


def test_a_state_folder_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="too long for the unix sockets"):
        preflight.prepare_folder(tmp_path / ("deep" * 30))


def test_a_state_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(SettingsError, match="cannot be made"):
        preflight.prepare_folder(tmp_path / "f" / "s")


def test_leftover_sockets_and_announcements_are_cleaned_and_data_is_kept(tmp_path: Path) -> None:
    preflight.prepare_folder(tmp_path)
    for name in ("redis.sock", "run/worker-local-1.sock"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / name))
    (tmp_path / "run" / "controller.json").write_text("{}")
    (tmp_path / "catalog.db").write_text("data")

    removed = preflight.clean_leftovers(tmp_path)

    assert sorted(removed) == ["controller.json", "redis.sock", "worker-local-1.sock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.db", "logs", "run"]


def test_logs_of_the_last_starts_are_kept(tmp_path: Path) -> None:
    preflight.prepare_folder(tmp_path)
    for start in range(6):
        preflight.rotate_logs(tmp_path, ["controller"])
        preflight.log_path(tmp_path, "controller").write_text(f"start {start}")

    kept = {p.name: p.read_text() for p in (tmp_path / "logs").iterdir()}

    assert kept == {
        "controller.log": "start 5",
        "controller.log.1": "start 4",
        "controller.log.2": "start 3",
        "controller.log.3": "start 2",
    }


def test_a_folder_has_one_holder_and_the_second_is_told_its_pid(tmp_path: Path) -> None:
    preflight.prepare_folder(tmp_path)
    first = FolderLock(tmp_path)
    with pytest.raises(ConflictError, match=rf"already up in .* \(pid {os.getpid()}\)"):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
