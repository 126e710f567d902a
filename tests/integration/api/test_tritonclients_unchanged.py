"""All four tritonclients against real servers, each in a process of its own (their messages clash with ours)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from computing_service import ComputingService
from pydantic import SecretStr
from serving import Serving, serving

from infaas.settings import AuthSettings, Settings

CLIENTS = Path(__file__).parents[2] / "e2e" / "clients"


async def run_client(script: str, url: str, *options: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENTS / script),
        "--url",
        url,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("script", ["triton_http.py", "triton_http_aio.py"])
async def test_the_http_clients_work_unchanged(edges: Serving, script: str) -> None:
    code, output = await run_client(script, edges.http)
    assert code == 0, output


@pytest.mark.parametrize("script", ["triton_grpc.py", "triton_grpc_aio.py"])
async def test_the_grpc_clients_work_unchanged(edges: Serving, script: str) -> None:
    code, output = await run_client(script, edges.grpc)
    assert code == 0, output


@pytest.mark.parametrize("script", ["triton_http.py", "triton_grpc.py"])
async def test_the_clients_work_with_a_token(script: str) -> None:
    settings = Settings(auth=AuthSettings(token=SecretStr("s3cret")))
    async with serving(ComputingService(), settings) as running:
        url = running.http if "http" in script else running.grpc
        code, output = await run_client(script, url, "--token", "s3cret", "--skip", "errors")
        assert code == 0, output
        code, output = await run_client(script, url, "--token", "wrong", "--skip", "health")
        assert code == 1
        assert "wrong token" in output
