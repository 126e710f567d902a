"""Working folders that a killed controller left behind: uploads of gigabytes that nobody will ever finish.

Every controller holds a shared lock on its state folder while it lives. One that starts and gets the lock for itself
alone knows that nobody uses what lies there, and removes it; where another controller lives, everything stays. The
lock is the kernel's, so it goes with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from infaas.errors import SettingsError
from infaas.observe.log import get_logger

PREFIXES = ("upload-", "register-", "attach-")
"""Of every working folder that a controller makes in `run`."""
_LOCK = ".controllers.lock"
_log = get_logger(__name__)


class Scratch:
    """This controller's share of the lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, state_dir: Path) -> Scratch:
        """Removes what dead controllers left. Raises SettingsError when the folder cannot be written, or its file
        system knows no locks."""
        run = state_dir / "run"
        try:
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(f"state_dir {str(state_dir)!r} cannot be written: {error.strerror or error}") from error
        try:
            if _is_alone(descriptor):
                _remove_left(run)
            else:
                _log.info("working folders stay: another controller lives in this state folder", folder=str(run))
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            os.close(descriptor)
            text = (
                f"state_dir {str(state_dir)!r} cannot be locked: {error.strerror or error}; it must be on a file system"
            )
            raise SettingsError(f"{text} with locks (a local disk, or NFS with its lock service)") from error
        return cls(descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _is_alone(descriptor: int) -> bool:
    """Take the lock for ourselves; False when another holds it. Raises OSError when there can be no lock here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_left(run: Path) -> None:
    for folder in run.iterdir():
        if not folder.name.startswith(PREFIXES) or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            shutil.rmtree(folder)
        except OSError as error:
            _log.warning("a working folder could not be removed", folder=str(folder), reason=str(error))
        else:
            _log.info("removed what a killed controller left", folder=str(folder))
