"""Outside clients of the end-to-end tests: each runs in a process of its own, and those whose dependencies clash with
ours in an environment of their own, made on first use from a pinned list and kept beside this one for the next run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLIENTS = Path(__file__).parent / "clients"
ENVIRONMENTS = "INFAAS_TEST_CLIENTS"
"""Where the environments are kept; empty: in this Python's own."""
PERF_ANALYZER = "INFAAS_TEST_PERF_ANALYZER"
INSTALL_S = 900.0
RUN_S = 300.0


@dataclass(frozen=True)
class Done:
    code: int
    said: str


def run(
    command: Sequence[str | Path], environ: Mapping[str, str], timeout_s: float = RUN_S, folder: Path | None = None
) -> Done:
    """Both streams together, as somebody at a terminal in `folder` sees them."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout)


@cache
def python_of(suite: str) -> Path | str:
    """The interpreter of a suite's environment, or why it cannot be had (the package index is out of reach)."""
    wanted = CLIENTS / f"{suite}-requirements.txt"
    pins = wanted.read_bytes() + sys.version.encode()
    base = Path(os.environ.get(ENVIRONMENTS) or Path(sys.prefix) / "clients")
    folder = base / f"{suite}-{hashlib.sha256(pins).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    try:
        base.mkdir(parents=True, exist_ok=True)
        with (base / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may want it at once
            if (folder / "complete").exists():
                return python
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted]
            done = run(install, os.environ, INSTALL_S)
            if done.code != 0:
                return f"{suite} cannot be installed here: {done.said.strip().splitlines()[-1][:300]}"
            (folder / "complete").touch()
            return python
    except (OSError, subprocess.SubprocessError) as error:
        return f"{suite} cannot be installed here: {error}"


def perf_analyzer() -> Path | str:
    """NVIDIA's load generator, or why it is not here."""
    given = os.environ.get(PERF_ANALYZER) or shutil.which("perf_analyzer")
    if given is None:
        return f"no perf_analyzer on PATH, and {PERF_ANALYZER} is not set"
    probe = subprocess.run([given, "--version"], capture_output=True, text=True, timeout=60, check=False)
    # Some builds know no --version; one that cannot start at all says so by a signal or the loader's 127.
    if probe.returncode < 0 or probe.returncode in (126, 127):
        return f"{given} does not start: {(probe.stderr or probe.stdout).strip()[:200]}"
    return Path(given)
