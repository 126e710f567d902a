"""What `pip install` of the wheel leaves in a clean environment, and that the demo runs from there alone."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"infaas", "infaas_controller", "infaas_worker", "infaas_variant_generator"}
MODELS = "infaas/demo/models/"
MODELS_LIMIT_BYTES = 5_000_000
QUERIES = 600

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None, timeout_s: float = 600) -> str:
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Installed:
    """The wheel in an environment of its own, far from the checkout."""

    folder: Path
    wheel: Path
    fresh: frozenset[str]
    """What lay in site-packages before."""

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def infaas_files(self) -> list[Path]:
        """What the wheel alone put there, relative to site-packages, by its own record."""
        code = "from importlib.metadata import files\nfor file in files('infaas'): print(file)"
        return [Path(line) for line in run(self.bin / "python", "-c", code, cwd=self.folder).splitlines()]


def copy_of_the_sources(target: Path) -> None:
    """What git tracks or would track: no build product of this checkout can get into the wheel by chance."""
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy_of_the_sources(folder / "src")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
    run(*pip, "--wheel-dir", folder, folder / "src", cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    (site_packages,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    fresh = frozenset(path.name for path in site_packages.iterdir())
    pip = (folder / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, wheel, cwd=folder)
    yield Installed(folder, wheel, fresh)
    shutil.rmtree(folder / "venv")


def test_only_our_packages_arrive(installed: Installed) -> None:
    outside = [path for path in installed.infaas_files() if path.parts[0] == ".."]
    inside = {path.parts[0] for path in installed.infaas_files() if path.parts[0] != ".."}
    (dist_info,) = inside - PACKAGES
    assert inside == PACKAGES | {dist_info}
    assert dist_info.startswith("infaas-")
    assert dist_info.endswith(".dist-info")
    assert [path.parts[-2:] for path in outside] == [("bin", "infaas")]


def test_nothing_that_claims_our_name_comes_from_elsewhere(installed: Installed) -> None:
    (site_packages,) = (installed.folder / "venv" / "lib").glob("python3*/site-packages")
    new = {path.name for path in site_packages.iterdir()} - installed.fresh
    ours = {name for name in new if name.lower().startswith("infaas")}
    assert {name for name in ours if not name.endswith(".dist-info")} == PACKAGES
    generic = {"controller", "worker", "variant_generator", "proto", "deploy", "tests", "benchmarks", "docs"}
    assert not new & generic


def test_the_wheel_has_all_that_runs_and_nothing_that_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        (metadata_file,) = (name for name in sizes if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata_file))
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(sizes)
    tracked = set(run("git", "ls-files", "infaas", cwd=ROOT).splitlines())
    assert {name for name in tracked if name.startswith(("infaas/catalog/migrations/", "infaas/demo/"))} <= set(sizes)
    assert any(name.startswith("infaas/catalog/migrations/versions/") for name in sizes)
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in sizes)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert not [name for name in sizes if Path(name).name.startswith(("test_", "conftest")) or "__pycache__" in name]
    models = {name: size for name, size in sizes.items() if name.startswith(MODELS)}
    assert sum(name.endswith(".onnx") for name in models) >= 7
    assert sum(models.values()) < MODELS_LIMIT_BYTES


def test_the_demo_runs_without_a_checkout(installed: Installed) -> None:
    home, away, output = (installed.folder / name for name in ("home", "away", "output"))
    home.mkdir()
    away.mkdir()
    environ = {"HOME": str(home), "PATH": f"{installed.bin}:{os.defpath}", "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
    passed_on = ("LANG", "LC_ALL", "INFAAS_REDIS_SERVER")
    environ |= {name: os.environ[name] for name in passed_on if name in os.environ}

    words = ("demo", "--queries", str(QUERIES), "--output", output)
    said = run(installed.bin / "infaas", *words, cwd=away, environ=environ, timeout_s=800)

    assert " 0 answers below a stated floor" in said, said
    assert "every sum and difference exact" in said, said
    results = json.loads((output / "results.json").read_text())
    assert sum(one["sent"] for one in results["sets"]) >= QUERIES * 0.9
    assert all(variant["state"] == "READY" for variant in results["variants"])
    assert (output / "frontier.svg").read_text().lstrip().startswith("<?xml")
    assert list(away.iterdir()) == []
    assert list(home.rglob("*")) == []
