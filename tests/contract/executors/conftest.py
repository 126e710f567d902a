"""One real Triton server for the whole suite, where there is a binary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from infaas.testing.triton import TritonProcess, why_no_triton

COLUMNS = ("onnxruntime", "onnxruntime_whole", "isolated", "isolated_whole", "triton")


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    if (reason := why_no_triton()) is not None:
        pytest.skip(reason)
    server = TritonProcess(tmp_path_factory.mktemp("triton"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


_outcomes: dict[str, dict[str, str]] = {}
"""Promise -> column -> how its test ended."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "test_executor_contract" not in report.nodeid or (report.when != "call" and report.passed):
        return
    name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
    column, _, case = parameters.rstrip("]").partition("-")
    if column not in COLUMNS:
        return
    promise = name.removeprefix("test_").replace("_", " ") + (f" ({case})" if case else "")
    outcome = "skipped" if report.skipped else "passed" if report.passed else "FAILED"
    _outcomes.setdefault(promise, {})[column] = outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The contract as a table, a column per executor, wherever more than one was held against it."""
    columns = [column for column in COLUMNS if any(column in row for row in _outcomes.values())]
    if len(columns) < 2:
        return
    terminalreporter.section("executor contract")
    terminalreporter.write_line("| promise | " + " | ".join(columns) + " |")
    terminalreporter.write_line("|--" * (len(columns) + 1) + "|")
    for promise, row in _outcomes.items():
        terminalreporter.write_line(f"| {promise} | " + " | ".join(row.get(c, "-") for c in columns) + " |")
