from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infaas.errors import NotFoundError
from infaas.programs import load, names


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "infaas.programs", *arguments], env=environ, capture_output=True, text=True, timeout=60
    )


def test_the_three_programs_are_installed() -> None:
    assert sorted(names()) == ["controller", "generator", "worker"]


def test_wrong_settings_are_one_line_and_exit_status_two(tmp_path: Path) -> None:
    done = start("worker", INFAAS_STATE_DIR=str(tmp_path), INFAAS_WORKER__CORS="2")

    assert done.returncode == 2
    assert done.stderr == ("infaas worker: unknown setting 'worker.cors' (`infaas config show` lists the known ones)\n")


def test_an_unknown_program_is_named_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="no program 'cook'; installed are controller, generator, worker"):
        load("cook")
    assert start("cook").returncode == 1
    assert start().returncode == 2


def test_a_program_does_not_start_without_its_supervisor(tmp_path: Path) -> None:
    done = start("worker", INFAAS_STATE_DIR=str(tmp_path), INFAAS_SUPERVISOR_PID="1")

    assert done.returncode != 0
    assert "the supervisor (pid 1) is gone" in done.stderr


def test_the_runtime_of_a_program_reports_to_nobody() -> None:
    code = "import os\nfrom infaas.programs import run\nrun('cook')\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr
