"""Tokens: which one is sent, and which ones are accepted, while they are being changed too.

There are two of them. *Callers* of REST, gRPC and metrics send `auth.token`; *parts* of a cluster send workers
`auth.cluster_token`, which is the callers' one where nothing else is set. A file may hold several, one per line: the
first is sent and all are accepted, so that a new one can be made known everywhere before anybody sends it.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from infaas.errors import SettingsError
from infaas.observe.log import get_logger
from infaas.settings import Settings, read_tokens

LOOK_EVERY_S = 1.0
_SCHEME = "bearer"
_log = get_logger(__name__)


class Tokens:
    """Read again when their file changes; a file that cannot be read then changes nothing, and is logged."""

    def __init__(
        self,
        setting: str,
        value: SecretStr | None = None,
        file: Path | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SettingsError when the file cannot be read or is empty."""
        self._setting = setting
        self._file = None if value is not None else file
        self._now = now
        self._looked_at = now()
        self._tokens = read_tokens(setting, value, file)
        self._encoded = [token.encode() for token in self._tokens]
        self._changes = 0
        self._trouble: str | None = None

    @classmethod
    def of(cls, token: str | None) -> Self:
        """One that does not change; None: none."""
        return cls("auth.token", None if token is None else SecretStr(token))

    @property
    def is_open(self) -> bool:
        """Whether there is no token at all, so that everyone who can connect is welcome. It does not change."""
        return not self._encoded

    @property
    def changes(self) -> int:
        """How often they have changed: who remembers that a token was good asks again when this is another number."""
        if self._file is not None and self._now() - self._looked_at >= LOOK_EVERY_S:
            self._look(self._file)
        return self._changes

    @property
    def sent(self) -> str | None:
        """What to send to others."""
        _ = self.changes
        return self._tokens[0] if self._tokens else None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """For a call over gRPC; empty where there is no token."""
        token = self.sent
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def headers(self) -> dict[str, str]:
        """For a request over HTTP."""
        return dict(self.metadata())

    def accepts(self, given: str) -> bool:
        """The time it takes does not depend on how much of a token was right, nor on which."""
        _ = self.changes
        if not self._encoded:
            return True
        encoded = given.encode()
        return sum([hmac.compare_digest(encoded, token) for token in self._encoded]) > 0

    def accepts_metadata(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Of a gRPC call."""
        if self.is_open:
            return True
        for key, value in metadata or ():
            if key.lower() == "authorization":
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                scheme, _, given = text.partition(" ")
                return scheme.lower() == _SCHEME and self.accepts(given.strip())
        return False

    def _look(self, file: Path) -> None:
        """Reads it, since its time and length may stay the same when it is written."""
        self._looked_at = self._now()
        try:
            found = read_tokens(self._setting, None, file)
        except SettingsError as error:
            if error.text != self._trouble:
                _log.error("the tokens stay as they were", setting=self._setting, reason=error.text)
            self._trouble = error.text
            return
        self._trouble = None
        if found != self._tokens:
            self._tokens, self._encoded = found, [token.encode() for token in found]
            self._changes += 1
            _log.info("tokens changed", setting=f"{self._setting}_file", count=len(found))


def callers_tokens(settings: Settings) -> Tokens:
    """What callers of REST, gRPC and metrics must send. Raises SettingsError."""
    return Tokens("auth.token", settings.auth.token, settings.auth.token_file)


def cluster_tokens(settings: Settings) -> Tokens:
    """What workers expect of controllers and generators. Raises SettingsError."""
    own = settings.auth
    if own.cluster_token is None and own.cluster_token_file is None:
        return callers_tokens(settings)
    return Tokens("auth.cluster_token", own.cluster_token, own.cluster_token_file)
