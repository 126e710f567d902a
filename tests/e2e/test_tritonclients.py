"""NVIDIA's four clients, unchanged, against a whole system: each in a process of its own, with and without a token."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_system import PATIENCE_S, SIMPLE_MODEL, SIMPLE_TASK, System, running

pytestmark = pytest.mark.long
CLIENTS = Path(__file__).parent / "clients"
SCRIPTS = ("triton_http.py", "triton_http_aio.py", "triton_grpc.py", "triton_grpc_aio.py")
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def open_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("e2e")) as system:
        system.register_simple()
        yield system


@pytest.fixture(scope="module")
def guarded_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("e2e")
    token_file = folder / "token"
    token_file.write_text(f"{TOKEN}\n")
    with running(folder, {"INFAAS_AUTH__TOKEN_FILE": str(token_file)}) as system:
        system.register_simple()
        yield system


def run_client(system: System, script: str, *options: str) -> tuple[int, str]:
    url = system.endpoints.grpc if "grpc" in script else system.endpoints.url.removeprefix("http://")
    done = subprocess.run(
        [sys.executable, CLIENTS / script, "--url", url, *options],
        env=system.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("handle", [SIMPLE_TASK, SIMPLE_MODEL])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_client_works_unchanged_by_task_and_by_model(open_system: System, script: str, handle: str) -> None:
    code, said = run_client(open_system, script, "--model", handle)
    assert code == 0, said
    for check in ("infer", "infer_with_requirements", "many_in_flight", "errors"):
        assert f"ok {check}\n" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_client_with_the_token_works_and_others_are_told_why_not(guarded_system: System, script: str) -> None:
    code, said = run_client(guarded_system, script, "--token", TOKEN)
    assert code == 0, said

    code, said = run_client(guarded_system, script, "--token", "another", "--skip", "health")
    assert code == 1
    assert "ok " not in said
    assert "wrong token" in said

    code, said = run_client(guarded_system, script, "--skip", "health")
    assert code == 1
    assert "ok " not in said
