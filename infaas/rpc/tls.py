"""Who may join a cluster over TCP: whoever shows a certificate that the cluster's own CA signed, both ways.

Only connections between parts are meant here. What runs over a unix socket stays as it is: nobody else can read it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infaas.errors import SettingsError
from infaas.observe.log import get_logger
from infaas.settings import Settings

HOP_PROTOCOL = "infaas"
"""By that name (ALPN) a controller says that it speaks frames; gRPC says `h2`."""
HANDSHAKE_WITHIN_S = 5.0
GOODBYE_WITHIN_S = 2.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True, repr=False)
class _Found:
    """What the files held."""

    cert: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True, slots=True)
class _Made:
    found: _Found
    client: ssl.SSLContext
    server: ssl.SSLContext


class Tls:
    """What connections are made with. The files are read for each, since a file's time and length may stay the same
    when it is written: what is open goes on with the certificates it began with."""

    def __init__(self, files: TlsFiles, peer_name: str | None = None) -> None:
        """`peer_name`: what workers' certificates are to be for; None: for the host that is dialled. Raises
        SettingsError for files that cannot be read, or do not belong together."""
        self._files = files
        self.peer_name = peer_name
        self._made = _made(files, _read(files))
        self._unfit: _Found | str | None = None

    def client(self) -> ssl.SSLContext:
        return self._current().client

    def server(self) -> ssl.SSLContext:
        return self._current().server

    def channel_credentials(self) -> Any:
        """For gRPC."""
        import grpc  # here, because who only listens needs none

        made = self._current().found
        return grpc.ssl_channel_credentials(made.ca, made.key, made.cert)

    def _current(self) -> _Made:
        """Files that do not fit, as in the middle of being replaced, change nothing; that is logged once."""
        found = _read(self._files)
        if found not in (self._made.found, self._unfit):
            try:
                self._made = _made(self._files, found)
                _log.info("certificates changed", cert_file=str(self._files.cert))
            except SettingsError as error:
                self._unfit = found
                _log.error("the certificates stay as they were", reason=error.text)
        return self._made


def open_tls(settings: Settings) -> Tls | None:
    """None where no certificates are set. Raises SettingsError."""
    own = settings.tls
    if own.cert_file is None or own.key_file is None or own.ca_file is None:
        return None
    return Tls(TlsFiles(own.cert_file, own.key_file, own.ca_file), own.peer_name)


def in_words(error: BaseException) -> str:
    """Why a handshake failed, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in text:
            return "it shows no certificate"
        if any(word in text for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")):
            return "it does not speak TLS"
    if isinstance(error, ConnectionError | ssl.SSLEOFError | EOFError):
        return f"it ended the connection in the middle of it ({text})"
    return text


def _made(files: TlsFiles, found: _Found | str) -> _Made:
    """Files that are written between `found` and here are seen when they are read the next time."""
    if isinstance(found, str):
        raise _unusable(files, found)
    try:
        client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_REQUIRED
        for context in (client, server):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(files.cert, files.key, password=_no_password)
            context.load_verify_locations(files.ca)
    except (OSError, ValueError) as error:  # TLS errors are of the first kind
        raise _unusable(files, str(error)) from error
    client.set_alpn_protocols([HOP_PROTOCOL])
    server.set_alpn_protocols([HOP_PROTOCOL, "h2"])
    return _Made(found, client, server)


def _unusable(files: TlsFiles, reason: str) -> SettingsError:
    return SettingsError(
        f"tls: {files.cert}, {files.key} and {files.ca} cannot be used: {reason}; they must be PEM files that may be "
        "read, the key not encrypted and the certificate's own"
    )


def _no_password() -> str:
    """OpenSSL would ask for one on the terminal."""
    raise ValueError("the key is encrypted")


def _read(files: TlsFiles) -> _Found | str:
    """In words, why they cannot be read."""
    try:
        return _Found(*(file.read_bytes() for file in (files.cert, files.key, files.ca)))
    except OSError as error:
        return str(error)
