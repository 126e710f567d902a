"""What a killed controller left of uploads is removed by the next one, and nothing that a living one uses."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from infaas_controller.scratch import PREFIXES, Scratch

from infaas.errors import SettingsError

HOLD = """
import sys
from pathlib import Path
from infaas_controller.scratch import Scratch
held = Scratch.open(Path(sys.argv[1]))
(Path(sys.argv[1]) / "run" / "upload-of-it").mkdir()
print("holds", flush=True)
sys.stdin.read()
"""


def folder(state_dir: Path, name: str) -> Path:
    made = state_dir / "run" / name
    made.mkdir(parents=True)
    (made / "model.onnx").write_bytes(b"half a model")
    return made


def test_left_working_folders_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    left = [folder(tmp_path, f"{prefix}abc") for prefix in PREFIXES]
    other = folder(tmp_path, "worker-local-1")
    named_alike = tmp_path / "run" / "upload-notes.txt"
    named_alike.write_text("a file")
    elsewhere = folder(tmp_path / "elsewhere", "upload-abc")
    (tmp_path / "run" / "upload-link").symlink_to(elsewhere)

    Scratch.open(tmp_path).close()

    assert not any(one.exists() for one in left)
    assert other.exists()
    assert named_alike.exists()
    assert (elsewhere / "model.onnx").exists()


def test_nothing_is_removed_while_another_controller_lives_and_all_once_it_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        upload = tmp_path / "run" / "upload-of-it"

        second = Scratch.open(tmp_path)
        assert upload.exists()
        other.kill()
        other.wait()
        third = Scratch.open(tmp_path)
        assert upload.exists()  # the second lives, and nobody knows whose it is
        second.close()
        third.close()

    Scratch.open(tmp_path).close()
    assert not upload.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_in_words_and_nothing_is_removed_or_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(_descriptor: int, _how: int) -> None:  # no file system at hand refuses
        raise OSError(code, os.strerror(code))

    left = folder(tmp_path, f"{PREFIXES[0]}abc")
    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(SettingsError, match=f"cannot be locked: {os.strerror(code)}"):
        Scratch.open(tmp_path)

    assert left.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_state_folder_that_cannot_be_had_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(SettingsError, match="state_dir"):
        Scratch.open(tmp_path)
