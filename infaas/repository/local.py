"""Artifacts in a folder of one machine (or one that all machines mount), named by the SHA-256 of their bytes.

An artifact appears whole or not at all: bytes go to a temporary file, are flushed, and are renamed into place. Nothing
is ever changed afterwards, so any number of processes may put and fetch the same digest at the same time. Storing bytes
again makes the file new, and one lock keeps that and the deletion of old files apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infaas.domain.ids import Digest, is_digest
from infaas.errors import InvalidError, NotFoundError, SettingsError, UnavailableError
from infaas.repository.base import UNKNOWN, Collected

_CHUNK_BYTES = 1 << 20
_RENEW_AFTER_S = 900.0
"""A file that is stored again counts as new from this age on; younger ones are far from being deleted."""
_MARK = re.compile(r"[0-9a-f-]{1,64}")
_Stamp = tuple[int, int, int]
"""Inode, modification time in nanoseconds, size: what a file that was verified before still has."""


class LocalRepository:
    """Blocking; safe to share between threads. Files are kept read-only under `root/ab/cdef...`, marks of catalogues
    under `root/catalogues`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._marks = root / "catalogues"
        self._verified: dict[Digest, _Stamp] = {}
        self._lock = threading.Lock()
        with _storage_errors(root):
            (root / "tmp").mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_url(cls, url: str) -> LocalRepository:
        """`file:///path` or a plain path. Raises SettingsError for any other scheme."""
        if "://" not in url:
            if not url:
                raise SettingsError("repository.url is empty; give a folder or file:///folder")
            return cls(Path(url).expanduser())
        parts = urlsplit(url)
        if parts.scheme != "file":
            raise SettingsError(
                f"repository.url {url!r}: scheme {parts.scheme!r} is not known; use file:///path or a path"
            )
        if parts.netloc not in ("", "localhost"):
            raise SettingsError(f"repository.url {url!r} names the host {parts.netloc!r}; use file:///path")
        return cls(Path(unquote(parts.path)))

    def put_bytes(self, data: bytes) -> Digest:
        return self._put((data,))

    def put_file(self, path: Path) -> Digest:
        """Copy a file in. Raises NotFoundError when there is no such file."""
        if not path.is_file():
            raise NotFoundError(f"no file {str(path)!r} to store")
        return self._put(_chunks(path))

    def fetch(self, digest: Digest) -> Path:
        """The artifact's own file, read-only, its bytes verified once per process and again whenever it changed.

        Raises NotFoundError, or UnavailableError when the stored bytes are damaged.
        """
        path = self._path(digest)
        with _storage_errors(self.root), self._naming(digest):
            if not self._is_intact(digest, path):
                raise UnavailableError(
                    f"artifact {digest} is damaged: {path} does not have these bytes; store it again",
                    is_retryable=False,
                )
        return path

    def has(self, digest: Digest) -> bool:
        return self._path(digest).is_file()

    def size(self, digest: Digest) -> int:
        """Raises NotFoundError."""
        path = self._path(digest)
        with _storage_errors(self.root), self._naming(digest):
            return path.stat().st_size

    def remove(self, digest: Digest) -> None:
        """Nothing happens when it is not there."""
        path = self._path(digest)
        with _storage_errors(self.root), self._locked(fcntl.LOCK_EX):
            path.unlink(missing_ok=True)
        with self._lock:
            self._verified.pop(digest, None)

    def collect(self, kept: Set[Digest], before: float) -> Collected:
        """Delete what is not in `kept` and was last stored before that time, and what killed writers left behind."""
        gone: list[Digest] = []
        size_bytes = 0
        with _storage_errors(self.root):
            for path in self.root.glob("[0-9a-f][0-9a-f]/*"):
                digest = Digest(path.parent.name + path.name)
                if not is_digest(digest) or digest in kept:
                    continue
                freed = self._take_away(path, before)
                if freed is None:
                    continue
                with self._lock:
                    self._verified.pop(digest, None)
                gone.append(digest)
                size_bytes += freed
            for path in (self.root / "tmp").iterdir():
                with contextlib.suppress(FileNotFoundError):  # its writer is done with it
                    if path.stat().st_mtime < before:
                        path.unlink()
        return Collected(tuple(gone), size_bytes)

    def _take_away(self, path: Path, before: float) -> int | None:
        """How many bytes that freed; None when it is new, was stored again since, or somebody else was first."""
        try:
            if path.stat().st_mtime >= before:
                return None
            with self._locked(fcntl.LOCK_EX):
                status = path.stat()
                if status.st_mtime >= before:
                    return None
                path.unlink()
        except FileNotFoundError:
            return None
        return status.st_size

    def join(self, catalogue: str) -> None:
        """A mark is an empty file with the catalogue's id as its name. Raises InvalidError for what is no id."""
        if not _MARK.fullmatch(catalogue):
            raise InvalidError(f"{catalogue!r} is no id of a catalogue")
        with _storage_errors(self.root):
            if (self._marks / catalogue).exists():
                return
            with self._locked(fcntl.LOCK_EX):
                self._marks.mkdir(exist_ok=True)
                is_first = next(self._marks.iterdir(), None) is None
                if is_first and next(self.root.glob("[0-9a-f][0-9a-f]/*"), None) is not None:
                    (self._marks / UNKNOWN).touch()
                (self._marks / catalogue).touch()

    def users(self) -> frozenset[str]:
        with _storage_errors(self.root):
            return frozenset(path.name for path in self._marks.iterdir()) if self._marks.is_dir() else frozenset()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Among all processes that use the folder. The lock goes with the handle, however its holder ends."""
        handle = os.open(self.root / ".lock", os.O_CREAT | os.O_RDONLY, 0o644)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _put(self, chunks: Iterable[bytes]) -> Digest:
        with _storage_errors(self.root):
            handle, name = tempfile.mkstemp(dir=self.root / "tmp")
            temporary = Path(name)
            try:
                hasher = hashlib.sha256()
                with os.fdopen(handle, "wb") as file:
                    for chunk in chunks:
                        hasher.update(chunk)
                        file.write(chunk)
                    file.flush()
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                digest = Digest(hasher.hexdigest())
                self._place(temporary, digest)
            finally:
                temporary.unlink(missing_ok=True)
        return digest

    def _place(self, temporary: Path, digest: Digest) -> None:
        """Rename into place unless the same bytes are there already; damaged bytes are replaced."""
        final = self._path(digest)
        with self._locked(fcntl.LOCK_SH):
            if final.is_file() and self._is_intact(digest, final) and _age_s(final) < _RENEW_AFTER_S:
                return
            final.parent.mkdir(exist_ok=True)
            os.replace(temporary, final)
            stamp = _stamp(final)
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        with self._lock:
            self._verified[digest] = stamp

    def _is_intact(self, digest: Digest, path: Path) -> bool:
        stamp = _stamp(path)
        with self._lock:
            if self._verified.get(digest) == stamp:
                return True
        hasher = hashlib.sha256()
        for chunk in _chunks(path):
            hasher.update(chunk)
        if hasher.hexdigest() != digest:
            return False
        with self._lock:
            self._verified[digest] = stamp
        return True

    @contextlib.contextmanager
    def _naming(self, digest: Digest) -> Iterator[None]:
        """A file that is not there, or not any more, is an artifact that the repository does not have."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"artifact {digest} is not in the repository {self.root}") from None

    def _path(self, digest: Digest) -> Path:
        if not is_digest(digest):
            raise InvalidError(f"{digest!r} is not a digest (64 lower-case hexadecimal digits)")
        return self.root / digest[:2] / digest[2:]


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"the repository {root} cannot be used: {error.strerror or error}") from error
