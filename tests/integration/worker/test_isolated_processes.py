"""The executor around one process per instance, with real processes: their priority, their loads, their nonsense."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from infaas_worker.decide.hang import Patience
from infaas_worker.executors.base import Executors
from infaas_worker.executors.isolated import IsolatedExecutor, IsolatedModel
from infaas_worker.executors.sample import sample
from infaas_worker.loading import Loader

from infaas.domain.variant import Isolation
from infaas.errors import ModelError, UnavailableError
from infaas.repository.local import LocalRepository
from infaas.testing import graphs

WAIT_S = 60.0
PROCESS = {"isolation": Isolation.PROCESS}
NONSENSE = """
import socket, sys
from infaas_worker.executors import frames
stream = socket.socket(fileno=int(sys.argv[1]))
frames.receive(stream)
frames.send(stream, frames.Loaded(1))
frames.receive(stream)
{answer}
stream.recv(1)
"""
HALF = """
import socket, sys
stream = socket.socket(fileno=int(sys.argv[1]))
stream.sendall(bytes(2))
while stream.recv(4096):
    pass
"""


def priorities(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in psutil.Process(pid).threads()}


async def test_what_serves_keeps_its_priority_though_it_was_loaded_at_a_low_one(tmp_path: Path):
    repository = LocalRepository(tmp_path)
    repository.put_bytes(graphs.double().data)
    variant = graphs.double().variant(threads=1, **PROCESS)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    before = set(threading.enumerate())
    opened = await Loader(repository, Executors(isolate=IsolatedExecutor)).open(variant, lambda: None)
    model = opened.model
    assert isinstance(model, IsolatedModel)
    try:
        model.submit(sample(variant, 1, 1)).result(WAIT_S)
        ours = [one for one in threading.enumerate() if one not in before and not one.name.startswith("load-")]
        assert {one.name.partition("-")[0] for one in ours} >= {"words", "to", "from"}
        assert {os.getpriority(os.PRIO_PROCESS, one.native_id or 0) for one in ours} == {usual}
        assert priorities(model.pid) == {usual}
    finally:
        model.close()


def test_a_load_that_hangs_is_ended_when_its_time_is_over(tmp_path: Path):
    artifact = tmp_path / "model.onnx"
    os.mkfifo(artifact)  # opening it waits for a writer that never comes
    executor = IsolatedExecutor(patience=Patience(load_least_s=1.0, factor=1.0))
    children = set(psutil.Process().children())
    with pytest.raises(ModelError, match="it hung: loading is given 1 s"):
        executor.load(graphs.double().variant(**PROCESS), artifact)
    assert set(psutil.Process().children()) <= children


def test_a_load_that_hangs_in_the_middle_of_its_answer_is_ended_as_well(starter):
    variant = graphs.double().variant(**PROCESS)
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-I", "-S", "-c", HALF, str(theirs.fileno())]
        process = starter.submit(
            subprocess.Popen, command, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),)
        ).result()
    with pytest.raises(ModelError, match="it hung: the rest of its answer is given 4 s"):
        IsolatedModel(variant, Path("unused"), process, ours, starter, 4.0)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def starter() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize(
    "answer",
    [
        "stream.sendall((3).to_bytes(4, 'little') + bytes(8) + bytes([0xC1] * 3))",
        "stream.sendall((1).to_bytes(4, 'little') + (2**62).to_bytes(8, 'little') + bytes(1))",
        "frames.send(stream, frames.Ran(1, ('y', 'z'), (), 0.1, ((((1,), 2),),), ()), [b'12'])",
    ],
)
def test_an_answer_that_cannot_be_read_ends_the_instance_and_leaves_no_batch_waiting(starter, answer):
    variant = graphs.double().variant(**PROCESS)
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", NONSENSE.format(answer=answer), str(theirs.fileno())]
        process = starter.submit(
            subprocess.Popen, command, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),)
        ).result()
    model = IsolatedModel(variant, Path("unused"), process, ours, starter, WAIT_S)
    try:
        with pytest.raises(UnavailableError, match="its answer cannot be read"):
            model.submit(sample(variant, 1, 1)).result(WAIT_S)
        assert "its answer cannot be read" in model.ended.result(WAIT_S)
    finally:
        model.close()
