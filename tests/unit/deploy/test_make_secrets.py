"""What `deploy/make-secrets.sh` makes is what the compose file and the manifests read, and never in a commit."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from infaas.settings import load_settings
from infaas.tokens import callers_tokens

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"


def make(folder: Path) -> list[str]:
    """Names of what is in the folder then."""
    subprocess.run(("sh", DEPLOY / "make-secrets.sh", folder), check=True, capture_output=True, timeout=30)
    return sorted(path.name for path in folder.iterdir())


def git(*words: str | Path, at: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return subprocess.run(("git", *words), cwd=at, capture_output=True, text=True, timeout=30)


def test_it_makes_every_secret_that_is_mounted_and_no_other(tmp_path: Path) -> None:
    secrets = set(make(tmp_path / "secrets")) - {".gitignore"}
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["secrets"]
    assert {source["file"].rpartition("/")[2] for source in compose.values()} == set(compose) == secrets
    (kubernetes,) = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["secretGenerator"]
    assert {file.removeprefix("secrets/") for file in kubernetes["files"]} == secrets - {"prometheus"}


def test_only_its_user_may_enter_the_folder_and_what_is_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    names = make(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {name: (folder / name).read_bytes() for name in names}
    assert make(folder) == names
    assert {name: (folder / name).read_bytes() for name in names} == before
    different = {before[name] for name in names} - {before["prometheus"]}
    assert len(different) == len(names) - 2, "the scraper's is the callers', and no other two are alike"


def test_the_scraper_gets_one_line_that_controllers_accept_while_the_token_is_being_changed(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\nsecond\n")
    make(tmp_path)
    tokens = callers_tokens(load_settings(environ={"INFAAS_AUTH__TOKEN_FILE": str(token)}))
    assert (tmp_path / "prometheus").read_text() == "first"
    assert tokens.accepts("first")


@pytest.mark.parametrize("folder", ["deploy/secrets", "deploy/kubernetes/secrets"])
def test_git_ignores_the_folders_that_are_documented(folder: str) -> None:
    if git("rev-parse", "--is-inside-work-tree", at=ROOT).returncode != 0:
        pytest.skip("these are not the files of a git repository")
    assert git("check-ignore", f"{folder}/token", at=ROOT).stdout.strip() == f"{folder}/token"


def test_git_ignores_what_it_makes_in_any_other_folder(tmp_path: Path) -> None:
    git("init", "--quiet", at=tmp_path)
    make(tmp_path / "elsewhere")
    assert git("status", "--porcelain", "--untracked-files=all", at=tmp_path).stdout == ""
