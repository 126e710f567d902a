"""Virtual environments of peers: one each, made on first use and kept until what belongs into it changes."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

_COMMON = ("numpy", "onnxruntime", "orjson")
PACKAGES: Mapping[str, Sequence[str]] = {
    "fastapi": (*_COMMON, "fastapi", "uvicorn", "uvloop", "httptools"),
    "mosec": (*_COMMON, "mosec"),
    # Its event loop policy is one that newer uvloops do not have.
    "mlserver": (*_COMMON, "mlserver", "uvloop<0.22"),
    "ray": (*_COMMON, "ray[serve]"),
    "py-spy": ("py-spy",),
}

_DONE = ".installed"


class CannotMakeError(Exception):
    """With what the installer said."""


def python_of(name: str, cache: Path) -> Path:
    """The interpreter of that peer's environment, which is made if it is not there. Raises CannotMakeError."""
    path, packages = _path(name, cache), PACKAGES[name]
    if is_there(name, cache):
        return path / "bin" / "python"
    print(f"making {path}: {', '.join(packages)}", file=sys.stderr, flush=True)
    venv.create(path, with_pip=True, clear=True)
    made = subprocess.run([*_pip(path), "install", "--quiet", *packages], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise CannotMakeError(f"its environment cannot be made: {made.stderr.strip()[-300:]}")
    (path / _DONE).write_text(_wanted(name))
    return path / "bin" / "python"


def is_there(name: str, cache: Path) -> bool:
    """Whether that peer's environment is made, with what belongs into it, for the interpreter that runs this."""
    done = _path(name, cache) / _DONE
    return done.is_file() and done.read_text() == _wanted(name)


def versions(cache: Path) -> dict[str, dict[str, str]]:
    """Of what was asked for in each environment that is there."""
    return {name: _versions(name, cache) for name in PACKAGES if is_there(name, cache)}


def _versions(name: str, cache: Path) -> dict[str, str]:
    words = [*_pip(_path(name, cache)), "list", "--format", "json"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True)
    wanted = {package.partition("<")[0].partition("[")[0] for package in PACKAGES[name]}
    return {one["name"]: one["version"] for one in json.loads(listed.stdout) if one["name"] in wanted}


def _wanted(name: str) -> str:
    return "\n".join((*PACKAGES[name], sys.version))


def _path(name: str, cache: Path) -> Path:
    return cache / f"peer-{name}"


def _pip(path: Path) -> list[str]:
    return [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
