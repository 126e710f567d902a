"""A private PostgreSQL server: real, on a unix socket in a folder of its own, for whoever tests or measures with one.

The binaries are the ones under INFAAS_TEST_POSTGRES_BIN, else on PATH, else Debian's newest. PostgreSQL refuses to run
as root; then the server runs as the user `postgres`, or `nobody`.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

VARIABLE = "INFAAS_TEST_POSTGRES_BIN"
USER = "infaas"
STARTS_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.05
_NEEDED = ("initdb", "postgres", "pg_isready")
_QUICK = {
    "fsync": "off",  # a crash of the server loses nothing by it, only one of the machine would
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "listen_addresses": "",
    "max_wal_size": "64MB",
}


def find_binaries(environ: Mapping[str, str]) -> Path | None:
    """The folder with the server's programs; None when there is none on this machine."""
    named = environ.get(VARIABLE)
    on_path = shutil.which("initdb", path=environ.get("PATH", ""))
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major, reverse=True)
    candidates = [Path(named)] if named else [*([Path(on_path).parent] if on_path else []), *debian]
    return next((folder for folder in candidates if all((folder / name).is_file() for name in _NEEDED)), None)


def _major(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


class PostgresServer:
    """`folder` must be empty, reachable for other users, and have a path short enough for a socket.

    The superuser has a password, so that every connection proves that ours reaches the server.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self.password = secrets.token_urlsafe(12) + "@:/ %"  # everything that a URL has to quote
        self._binaries = binaries
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = _unprivileged()
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self._as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def create(self) -> None:
        """Make the cluster's files."""
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        words = ["-D", str(self._data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        words += ["--encoding=UTF8", "--locale=C"]
        self._run("initdb", *words)
        secret.unlink()

    def start(self) -> None:
        """Returns once it takes connections."""
        options = {**_QUICK, "unix_socket_directories": str(self.folder)}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *words],
                stdout=log, stderr=log, cwd=self.folder, **self._as_user,
            )  # fmt: skip
        deadline = time.monotonic() + STARTS_WITHIN_S
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", str(self.folder), "-d", "postgres", "-t", "5"]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(_LOOK_EVERY_S)

    def kill(self) -> None:
        """As a crash does: connections break at once, nothing is written down. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped, with every connection open: nothing is refused and nothing answered."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        stopped = [server, *server.children(recursive=True)]
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                if process.is_running():
                    process.resume()

    def url(self, database: str = "postgres", *, with_password: bool = True) -> str:
        secret = f":{quote(self.password, safe='')}" if with_password else ""
        return f"postgresql+psycopg://{USER}{secret}@/{database}?host={quote(str(self.folder), safe='')}"

    def new_database(self, template: str = "template1") -> str:
        """Its name. A template must have no connections."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def execute(self, statement: str, database: str = "postgres") -> None:
        """As the superuser, outside a transaction."""
        import psycopg

        place = {"host": str(self.folder), "user": USER, "password": self.password, "dbname": database}
        with psycopg.connect(**place, autocommit=True) as connection:  # type: ignore[arg-type]
            connection.execute(statement.encode())

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *words], cwd=self.folder, capture_output=True, text=True, check=False,
            **self._as_user,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
