"""The link between tests and a store closes all that it opened, whatever state it is stopped in."""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from infaas.testing.slow_link import SlowLink


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as name:
        yield Path(name)


def unix_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    return made


def test_what_is_written_on_one_side_comes_out_on_the_other_and_closing_is_told(folder: Path) -> None:
    with ExitStack() as stack:
        far = stack.enter_context(unix_socket())
        far.bind(str(folder / "far"))
        far.listen()
        link = SlowLink(folder / "far", folder / "near")
        link.start()
        stack.callback(link.stop)
        near = stack.enter_context(unix_socket())
        near.connect(str(folder / "near"))
        there = stack.enter_context(far.accept()[0])
        near.sendall(b"question")
        assert there.recv(100) == b"question"
        there.sendall(b"answer")
        assert near.recv(100) == b"answer"
        there.close()
        assert near.recv(100) == b""


@pytest.mark.parametrize("is_far_gone", [False, True])
def test_a_link_that_is_stopped_in_the_middle_of_everything_leaves_nothing_open(
    folder: Path, is_far_gone: bool
) -> None:
    """Connections that are idle, that have data nobody reads, whose peers leave now, or that never got through."""
    gc.collect()  # whatever others left to it
    before = psutil.Process().num_fds()
    with ExitStack() as stack:
        far = stack.enter_context(unix_socket())
        far.bind(str(folder / "far"))
        far.listen()
        link = SlowLink(folder / "far", folder / "near")
        link.start()
        nears, fars = [], []
        for _ in range(12):
            nears.append(stack.enter_context(unix_socket()))
            nears[-1].connect(str(folder / "near"))
            fars.append(stack.enter_context(far.accept()[0]))
        for near in nears[3:6]:
            near.setblocking(False)
            with suppress(BlockingIOError):
                while near.send(bytes(2**16)):
                    continue
        for end in (*nears[6:9], *fars[9:]):
            end.close()
        if is_far_gone:
            far.close()
            (folder / "far").unlink()
            late = stack.enter_context(unix_socket())
            late.connect(str(folder / "near"))
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), link._loop).result()
        link.stop()
    assert psutil.Process().num_fds() == before
