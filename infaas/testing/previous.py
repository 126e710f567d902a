"""The code of the release before, from this repository's own history, for tests in which two versions work together."""

from __future__ import annotations

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

PREVIOUS = "8c4a5ffd15fdc2f70352b72911ba34a439024643"
"""What a rolling upgrade comes from, until there are releases: the last commit before the fleet. It knows neither the
fleet's kinds of records nor what their leader does, so the two are really different. A release moves this to the
one before it."""

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("infaas", "controller", "worker", "variant_generator")


class NoHistoryError(Exception):
    """This is no clone of the repository, or one that does not reach back so far."""


def unpack_previous(folder: Path) -> Path:
    """The packages of `PREVIOUS` under `folder`, which is returned. Raises NoHistoryError."""
    words = ["git", "-C", str(_REPOSITORY), "archive", "--format=tar", PREVIOUS, *_PACKAGES]
    try:
        done = subprocess.run(words, check=False, capture_output=True)
    except OSError as error:
        raise NoHistoryError(f"git cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise NoHistoryError(f"commit {PREVIOUS} is not in this clone's history ({said}); git fetch --unshallow")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def environ_of(source: Path) -> dict[str, str]:
    """This process's variables, less what is told to programs of ours, with the code from there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    return {**clean, "PYTHONPATH": python_path(source)}


def python_path(source: Path) -> str:
    """For PYTHONPATH: what is imported comes from there, whatever else is installed."""
    return ":".join([str(source), *(str(source / package) for package in _PACKAGES[1:])])
