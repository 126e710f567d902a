"""A certification authority of a test's own, and certificates that are good, expired, or somebody else's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from infaas.rpc.tls import TlsFiles


class Authority:
    """Writes what it issues into `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        import trustme  # here, because it is no part of what is shipped

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self._issued = 0
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, is_expired: bool = False) -> TlsFiles:
        """For these hosts: names or addresses."""
        self._issued += 1
        began = datetime.now(UTC) - timedelta(days=2)
        ends = datetime.now(UTC) + timedelta(days=-1 if is_expired else 1)
        issued = self._ca.issue_cert(*names, not_before=began, not_after=ends)
        cert, key = self._folder / f"{self._issued}.crt", self._folder / f"{self._issued}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return TlsFiles(cert, key, self.file)
