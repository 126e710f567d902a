"""Which token is sent, and which are accepted, before, during and after a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infaas.errors import SettingsError
from infaas.settings import load_settings
from infaas.tokens import LOOK_EVERY_S, Tokens, callers_tokens, cluster_tokens


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self) -> None:
        self.now += LOOK_EVERY_S


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("old\n")
    return path


@pytest.mark.parametrize("given", ["", "x", "öld", "old ", "OLD", "ol", "oldx"])
def test_only_the_very_token_is_accepted(given: str) -> None:
    tokens = Tokens.of("old")
    assert tokens.accepts("old")
    assert not tokens.accepts(given)
    assert not tokens.is_open


def test_without_a_token_everybody_is_accepted_and_nothing_is_sent() -> None:
    tokens = Tokens.of(None)
    assert tokens.is_open
    assert tokens.accepts("anything")
    assert tokens.accepts_metadata(None)
    assert (tokens.sent, tokens.metadata(), tokens.headers()) == (None, (), {})


def test_the_first_line_is_sent_and_every_line_is_accepted(file: Path) -> None:
    file.write_text("\n  new  \n\nold\n")
    tokens = Tokens("auth.token", file=file)
    assert tokens.headers() == {"authorization": "Bearer new"}
    assert [tokens.accepts(given) for given in ("new", "old", "new\nold", "")] == [True, True, False, False]


def test_a_change_goes_through_without_anybody_refused(file: Path) -> None:
    time = Time()
    ours, theirs = (Tokens("auth.token", file=file, now=time) for _ in range(2))
    said = []
    for text in ("old", "old\nnew", "new\nold", "new"):
        file.write_text(text)
        time.passes()
        said.append(ours.sent)
        assert theirs.accepts(ours.sent or "")
    assert said == ["old", "old", "new", "new"]
    assert not theirs.accepts("old")
    assert theirs.changes == 3


def test_a_change_is_seen_where_the_clock_of_the_files_did_not_move(file: Path) -> None:
    """Kernels tell a file's time in steps of up to 10 ms, so that two writes of one length may look like one."""
    time = Time()
    tokens = Tokens("auth.token", file=file, now=time)
    before = file.stat()
    file.write_text("new\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.passes()
    assert tokens.sent == "new"


def test_a_file_is_looked_at_once_a_second_at_most(file: Path) -> None:
    time = Time()
    tokens = Tokens("auth.token", file=file, now=time)
    file.write_text("another")
    time.now += LOOK_EVERY_S / 2
    assert tokens.accepts("old")
    time.passes()
    assert not tokens.accepts("old")


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_file_that_is_gone_or_empty_changes_nothing_and_is_said_once(
    file: Path, is_gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    time = Time()
    tokens = Tokens("auth.token", file=file, now=time)
    file.unlink() if is_gone else file.write_text("\n")
    for _ in range(3):
        time.passes()
        assert tokens.accepts("old")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "the tokens stay as they were" in lines[0]
    assert "auth.token_file" in lines[0]
    file.write_text("new")
    time.passes()
    assert tokens.accepts("new")


def test_no_change_is_logged_with_the_token_in_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    tokens = Tokens("auth.token", file=file, now=time)
    file.write_text("brand-new-5ecret\nold-5ecret")
    time.passes()
    assert tokens.sent == "brand-new-5ecret"
    said = capsys.readouterr().err
    assert "tokens changed" in said
    assert "5ecret" not in said


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((("authorization", "Bearer old"),), True),
        ((("Authorization", b"bearer old"),), True),
        ((("authorization", "old"),), False),
        ((("authorization", "Basic old"),), False),
        ((("other", "Bearer old"),), False),
        ((), False),
        (None, False),
    ],
)
def test_a_call_over_grpc_shows_it_in_its_metadata(
    metadata: tuple[tuple[str, str | bytes], ...] | None, expected: bool
) -> None:
    assert Tokens.of("old").accepts_metadata(metadata) is expected


def test_parts_use_the_callers_token_unless_they_have_one_of_their_own(file: Path) -> None:
    shared = load_settings(environ={"INFAAS_AUTH__TOKEN": "callers"})
    assert cluster_tokens(shared).sent == callers_tokens(shared).sent == "callers"
    own = load_settings(environ={"INFAAS_AUTH__TOKEN": "callers", "INFAAS_AUTH__CLUSTER_TOKEN_FILE": str(file)})
    assert (callers_tokens(own).sent, cluster_tokens(own).sent) == ("callers", "old")
    assert not cluster_tokens(own).accepts("callers")
    assert own.token() == "callers"


@pytest.mark.parametrize("name", ["token", "cluster_token"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_token_is_no_credential_and_is_refused(tmp_path: Path, name: str, blank: str) -> None:
    path = tmp_path / "infaas.yaml"
    path.write_text(f"auth: {{{name}: '{blank}'}}")
    with pytest.raises(SettingsError, match=rf"auth\.{name}"):
        load_settings(path, environ={}).require_secrets()
