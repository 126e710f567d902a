"""Certificates are what their files say now, whatever the files' times say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infaas.rpc.tls import Tls
from infaas.testing.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def overwrite(file: Path, content: bytes) -> None:
    """In place, at a time and with a length that tell nothing."""
    before = file.stat()
    file.write_bytes(content.ljust(before.st_size, b"\n"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_change_is_seen_where_the_clock_of_the_files_did_not_move(authority: Authority) -> None:
    files, later = authority.issue("a-worker"), authority.issue("a-worker")
    longest = {file: max(len(file.read_bytes()), len(new.read_bytes())) for file, new in _pairs(files, later)}
    for file, length in longest.items():
        file.write_bytes(file.read_bytes().ljust(length, b"\n"))
    tls = Tls(files)
    first = tls.server()
    assert tls.server() is first
    for file, new in _pairs(files, later):
        overwrite(file, new.read_bytes())
    second = tls.server()
    assert second is not first
    assert tls.server() is second


def test_files_that_do_not_fit_change_nothing_and_are_said_once_until_they_fit_again(authority: Authority) -> None:
    files, later = authority.issue("a-worker"), authority.issue("a-worker")
    tls, key = Tls(files), files.key.read_bytes()
    first = tls.server()
    with capture_logs() as lines:
        files.key.write_bytes(later.key.read_bytes())
        assert [tls.server() for _ in range(3)] == [first] * 3
        files.key.unlink()
        assert [tls.server() for _ in range(3)] == [first] * 3
        files.key.write_bytes(key)
        assert tls.server() is first
    assert [line["event"] for line in lines] == ["the certificates stay as they were"] * 2
    assert str(files.key) in lines[1]["reason"]


def _pairs(old: object, new: object) -> list[tuple[Path, Path]]:
    return [(getattr(old, name), getattr(new, name)) for name in ("cert", "key")]
