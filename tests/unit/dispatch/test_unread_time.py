"""How long queries lay unread, by the kernel's account."""

from __future__ import annotations

from pathlib import Path

import pytest
from infaas_controller import unread
from infaas_controller.unread import ASK_EVERY_S, LONGEST, MOST_S, UnreadTime


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "schedstat"
    file.write_text("1000000 0 10\n")
    monkeypatch.setattr(unread, "ACCOUNT", file)
    return file


def test_the_longest_wait_is_reckoned_from_the_mean_since_it_was_last_asked(account: Path) -> None:
    time = UnreadTime()
    account.write_text("2000000 4000000 14\n")
    assert time.at(1.0) == pytest.approx(LONGEST * 0.001)
    account.write_text("2000000 9000000 24\n")
    assert time.at(1.0 + ASK_EVERY_S / 2) == pytest.approx(LONGEST * 0.001), "it is not asked for every query"
    assert time.at(1.0 + ASK_EVERY_S) == pytest.approx(LONGEST * 0.0005)
    assert time.at(2.0) == pytest.approx(LONGEST * 0.0005), "no turn since"
    account.write_text("2000000 9000000000 25\n")
    assert time.at(3.0) == MOST_S, "a thread that was stopped for seconds says nothing of queries"
    time.close()


def test_without_an_account_nothing_is_known_and_nothing_is_reckoned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (None, "", "1 2\n", "a b c\n"):
        file = tmp_path / f"{text!r:.8}".replace("/", "")
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(unread, "ACCOUNT", file)
        time = UnreadTime()
        assert time.at(1.0) == 0.0
        time.close()


def test_the_kernel_keeps_the_account_of_this_thread() -> None:
    time = UnreadTime()
    assert 0.0 <= time.at(1.0) <= MOST_S
    time.close()
