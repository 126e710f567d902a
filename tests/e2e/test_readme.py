"""What the README tells a newcomer to type is typed here, word for word, against a system on free ports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def snippets(section: str, language: str) -> list[str]:
    """Fenced blocks of one language under a heading."""
    body = README.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", body, re.DOTALL)


def commands(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A home of its own and free ports; the rest is as the README has it."""
    chosen = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "INFAAS_CONTROLLER__HTTP_PORT": "0",
        "INFAAS_CONTROLLER__GRPC_PORT": "0",
        "INFAAS_CONTROLLER__METRICS_PORT": "0",
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.5",
    }
    yield chosen
    subprocess.run(["infaas", "down"], env=chosen, cwd=ROOT, capture_output=True, check=False, timeout=60)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_five_minutes_work_as_written(environment: Mapping[str, str], tmp_path: Path) -> None:
    (shell,) = snippets("Five minutes", "sh")
    (python,) = snippets("Five minutes", "python")
    for command in commands(shell):
        if command == "infaas status":
            # While the system is up: the Python of the README, pointed at the port that was free.
            endpoints = json.loads((tmp_path / "state" / "infaas" / "run" / "controller.json").read_text())
            script = python.replace("localhost:8000", f"localhost:{endpoints['http_port']}")
            printed = run([sys.executable, "-c", script], environment)
            assert re.fullmatch(r"\d digits-\S+\n", printed), printed
        printed = run(["sh", "-c", command], environment)
        if command.startswith("infaas infer") and "--explain" in command:
            assert "chosen" in printed
        if command == "infaas variant list":
            assert "digits-mlp.v1.ort-fp32-t1" in printed
            assert "digits-forest.v1.ort-fp32-t1" in printed


def run(arguments: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        arguments, env=dict(environment), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout
