"""The REST edge over uvicorns other than the one that is installed: its classes are private, and may change.

`http_protocol` specialises a class of uvicorn's that promises nothing. The range in `pyproject.toml` keeps users to
releases that were tried; here the oldest of that range and the newest release there is are tried, each by the edge's
own suites in a process that imports it. A newest release within the range must pass. One beyond it harms nobody yet:
that it does not pass is told as an expected failure, with what failed, before anybody widens the range.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
SUITES = (
    "tests/integration/api/test_both_ways.py",
    "tests/integration/api/test_callers_lost_in_a_fault.py",
    "tests/integration/api/test_connection_limit.py",
    "tests/integration/api/test_large_requests.py",
    "tests/integration/api/test_many_callers_at_once.py",
    "tests/integration/api/test_no_cycles_are_left.py",
    "tests/integration/api/test_one_send_per_answer.py",
    "tests/integration/api/test_rest_edge.py",
    "tests/integration/api/test_turning_away.py",
    "tests/fault/edges/test_slow_and_broken_callers.py",
)
"""What stands on uvicorn's connections."""
OUT_OF_REACH = (
    "(from versions: none)",
    "Connection refused",
    "Connection timed out",
    "Max retries exceeded",
    "Network is unreachable",
    "Read timed out",
    "Temporary failure in name resolution",
)
"""What pip says when it is not the release that is at fault."""
PROGRAM = """
import sys
from pathlib import Path
import uvicorn
if not Path(uvicorn.__file__).is_relative_to(sys.argv[1]):
    sys.exit(f"uvicorn is that of {uvicorn.__file__}")
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Uvicorn:
    folder: Path
    version: Version


def admitted() -> Requirement:
    """What of uvicorn the project asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "uvicorn")
    return found


def oldest() -> str:
    (least,) = (one.version for one in admitted().specifier if one.operator == ">=")
    return f"uvicorn~={least}.0" if least.count(".") == 1 else f"uvicorn=={least}"


def fetched(wanted: str, folder: Path) -> Uvicorn:
    """That release in a folder of its own, without what it depends on. Skips when no index can be reached."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    done = subprocess.run(
        (*pip, "--retries", "1", "--timeout", "20", "--target", folder, wanted),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(sign in done.stderr for sign in OUT_OF_REACH):
        pytest.skip(f"no package index could be reached for {wanted}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (version,) = (one.version for one in distributions(path=[str(folder)]) if one.name.lower() == "uvicorn")
    return Uvicorn(folder, Version(version))


def suites_over(uvicorn: Uvicorn) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(uvicorn.folder), *filter(None, sys.path)])
    options = ("-q", "-p", "no:cacheprovider", "-m", "not long", "-x", "--tb=short")
    return subprocess.run(
        (sys.executable, "-c", PROGRAM, str(uvicorn.folder), *options, *SUITES),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("which", ["oldest that is admitted", "newest there is"])
def test_the_edge_behaves_alike_over_another_uvicorn(which: str, tmp_path: Path) -> None:
    uvicorn = fetched("uvicorn" if which.startswith("newest") else oldest(), tmp_path / "uvicorn")
    done = suites_over(uvicorn)
    said = f"over uvicorn {uvicorn.version}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}"
    if done.returncode and uvicorn.version not in admitted().specifier:
        pytest.xfail(f"{uvicorn.version} is beyond {admitted().specifier}, and must not be admitted as it is: {said}")
    assert done.returncode == 0, said
