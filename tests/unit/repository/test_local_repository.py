from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from infaas.domain.ids import Digest
from infaas.errors import InvalidError, NotFoundError, SettingsError, UnavailableError
from infaas.repository.base import UNKNOWN, open_repository
from infaas.repository.local import LocalRepository


def test_what_was_put_is_fetched_by_its_sha256(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    digest = repository.put_bytes(b"model")
    assert digest == hashlib.sha256(b"model").hexdigest()
    assert repository.fetch(digest).read_bytes() == b"model"
    assert repository.has(digest)
    assert repository.size(digest) == 5


def test_a_file_and_its_bytes_are_one_artifact(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path / "store")
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    assert repository.put_file(source) == repository.put_bytes(b"x" * 3_000_000)
    assert source.exists()
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_artifacts_are_read_only(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    mode = repository.fetch(repository.put_bytes(b"model")).stat().st_mode
    assert stat.S_IMODE(mode) == 0o444


def test_an_unknown_digest_is_not_found(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    with pytest.raises(NotFoundError):
        repository.fetch(Digest("0" * 64))
    assert not repository.has(Digest("0" * 64))


@pytest.mark.parametrize("text", ["../../etc/passwd", "0" * 63, "G" * 64, ""])
def test_what_is_no_digest_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidError):
        LocalRepository(tmp_path).fetch(Digest(text))


def test_damaged_bytes_are_never_handed_out_and_can_be_put_again(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    digest = repository.put_bytes(b"model")
    path = repository.fetch(digest)
    path.chmod(0o644)
    path.write_bytes(b"evil!")
    with pytest.raises(UnavailableError, match="damaged"):
        repository.fetch(digest)
    repository.put_bytes(b"model")
    assert repository.fetch(digest).read_bytes() == b"model"


def test_another_process_verifies_what_it_did_not_write(tmp_path: Path) -> None:
    digest = LocalRepository(tmp_path).put_bytes(b"model")
    path = tmp_path / digest[:2] / digest[2:]
    path.chmod(0o644)
    path.write_bytes(b"other")
    with pytest.raises(UnavailableError, match="damaged"):
        LocalRepository(tmp_path).fetch(digest)


def test_an_intact_file_is_read_for_verification_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = LocalRepository(tmp_path).put_bytes(b"model")
    repository = LocalRepository(tmp_path)
    opened: list[Path] = []
    real_open = Path.open

    def counting(path: Path, *args: object, **kwargs: object) -> object:
        opened.append(path)
        return real_open(path, *args, **kwargs)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", counting)
    repository.fetch(digest)
    repository.fetch(digest)
    assert len(opened) == 1


def test_concurrent_puts_of_the_same_bytes_are_one_artifact(tmp_path: Path) -> None:
    data = os.urandom(500_000)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: LocalRepository(tmp_path).put_bytes(data), range(32)))
    (digest,) = digests
    assert LocalRepository(tmp_path).fetch(digest).read_bytes() == data
    assert not list((tmp_path / "tmp").iterdir())


def test_removing_is_idempotent(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    digest = repository.put_bytes(b"model")
    repository.remove(digest)
    repository.remove(digest)
    assert not repository.has(digest)


def test_a_full_disk_is_unavailable_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = LocalRepository(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left") as caught:
        repository.put_bytes(b"model")
    assert caught.value.is_retryable
    assert not list((tmp_path / "tmp").iterdir())


def test_a_path_and_a_file_url_open_the_same_folder(tmp_path: Path) -> None:
    digest = open_repository(str(tmp_path / "a b")).put_bytes(b"model")
    assert open_repository(f"file://{tmp_path}/a%20b").has(digest)


@pytest.mark.parametrize("url", ["s3://bucket", "file://host/path", ""])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        open_repository(url)


def test_catalogues_that_use_a_repository_are_known_to_all_who_open_it(tmp_path: Path) -> None:
    assert LocalRepository(tmp_path).users() == frozenset()
    for _ in range(2):
        LocalRepository(tmp_path).join("1-a")
    LocalRepository(tmp_path).put_bytes(b"model")
    LocalRepository(tmp_path).join("2-b")
    assert LocalRepository(tmp_path).users() == {"1-a", "2-b"}


def test_artifacts_that_were_there_before_the_first_catalogue_joined_have_an_unknown_user(tmp_path: Path) -> None:
    repository = LocalRepository(tmp_path)
    repository.put_bytes(b"model")
    repository.join("1-a")
    assert repository.users() == {"1-a", UNKNOWN}


@pytest.mark.parametrize("text", ["", "../a", "a/b", "A"])
def test_what_is_no_id_of_a_catalogue_leaves_no_mark(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidError):
        LocalRepository(tmp_path).join(text)


def test_several_that_collect_store_and_fetch_at_once_never_stumble_over_each_other(tmp_path: Path) -> None:
    """Whatever one of them looks at, another one may have taken away, stored again or removed by then."""
    data = [number.to_bytes(2, "big") * 10 for number in range(300)]
    repository = LocalRepository(tmp_path)
    digests = [repository.put_bytes(one) for one in data]
    for path in tmp_path.glob("??/*"):
        os.utime(path, (0, 0))

    def collect() -> list[Digest]:
        return list(LocalRepository(tmp_path).collect(frozenset(), time.time() - 3600).digests)

    def store() -> list[Digest]:
        return [LocalRepository(tmp_path).put_bytes(one) for one in data[::10]]

    def fetch() -> list[Digest]:
        own = LocalRepository(tmp_path)
        for digest in digests:
            with suppress(NotFoundError):
                own.size(digest)
                own.fetch(digest)
        return digests

    def remove() -> list[Digest]:
        for digest in digests[5::10]:
            LocalRepository(tmp_path).remove(digest)
        return digests

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(work) for work in (collect, store, fetch, collect, remove, collect, fetch, collect)]
        gone = [digest for job, work in zip(jobs, "csfcrcfc", strict=True) for digest in job.result() if work == "c"]
    stored = set(digests[::10])
    assert len(gone) == len(set(gone))
    assert all(repository.has(digest) == (digest in stored) for digest in digests)
    assert not list((tmp_path / "tmp").iterdir())


def test_an_artifact_that_goes_while_it_is_looked_at_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = LocalRepository(tmp_path)
    digest = repository.put_bytes(b"model")
    real = Path.stat

    def racing(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        if path.name == digest[2:]:
            path.unlink(missing_ok=True)
        return found

    for look in (LocalRepository(tmp_path).fetch, LocalRepository(tmp_path).size):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", racing)
            with suppress(NotFoundError):
                look(digest)  # it goes while this is looking
            with pytest.raises(NotFoundError):
                look(digest)
        repository.put_bytes(b"model")
