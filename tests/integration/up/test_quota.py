"""A program gets no more of the processor than it may, where control groups can be made; else it does not run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infaas.up.crew import Crew, MemberState
from infaas.up.quota import QuotaError, forget, limit_cpu

LIMIT = 0.2
MEASURED_S = 1.0
SPIN = (sys.executable, "-c", "while True: pass")
ENVIRON = {"LC_ALL": "C.UTF-8"}


def wait_for(question: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    try:
        forget(limit_cpu("infaas-test-probe", LIMIT))
    except QuotaError as error:
        pytest.skip(str(error))
    crew = Crew(tmp_path / "crew")
    yield crew
    assert crew.end_all(0.0) == []


def test_a_limited_program_gets_its_share_and_its_group_goes_with_it(crew: Crew, tmp_path: Path) -> None:
    crew.start("spinner", SPIN, ENVIRON, b"note", LIMIT)
    wait_for(lambda: crew.members()[0].state is MemberState.RUNNING, "it to run")
    process = psutil.Process(crew.members()[0].pid)
    wait_for(lambda: process.cmdline() == list(SPIN), "it to have become the program")
    group = Path((tmp_path / "crew" / "spinner" / "group").read_text()).parent
    assert str(process.pid) in (group / "cgroup.procs").read_text().split()

    began, used = time.monotonic(), sum(process.cpu_times()[:2])
    wait_for(lambda: time.monotonic() - began > MEASURED_S, "time to pass")
    share = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began)
    assert 0.0 < share < 2 * LIMIT, "of a core that it would have all to itself"

    wait_for(lambda: crew.end("spinner", 0.0), "it to end")
    wait_for(lambda: not _stays(group), "its group to go")


def _stays(group: Path) -> bool:
    forget(group / "cgroup.procs")
    return group.exists()


def test_where_no_group_can_be_made_it_does_not_run_and_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    with pytest.raises(QuotaError, match=r"a limit of 0\.2 cores needs a control group that this user may make"):
        limit_cpu("infaas-test", LIMIT, tmp_path, own)


@pytest.mark.parametrize(
    ("lines", "mounted", "files"),
    [
        ("3:cpu,cpuacct:/a/b\n0::/\n", "cpu,cpuacct/a/b", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "2000"}),
        ("1:cpu:/\n", "cpu", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "2000"}),
        ("0::/user.slice/x\n", "user.slice/x", {"cpu.max": "2000 10000"}),
    ],
)
def test_both_versions_of_control_groups_are_told_in_their_own_words(
    tmp_path: Path, lines: str, mounted: str, files: dict[str, str]
) -> None:
    """On ordinary folders, which take whatever is written."""
    (tmp_path / mounted).mkdir(parents=True)
    (tmp_path / mounted / "cgroup.controllers").touch()
    own = tmp_path / "own"
    own.write_text(lines)
    processes = limit_cpu("infaas-test", LIMIT, tmp_path, own)
    assert processes == tmp_path / mounted / "infaas-test" / "cgroup.procs"
    assert {name: (processes.parent / name).read_text() for name in files} == files
