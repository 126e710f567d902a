"""Log lines: structured, on standard error, and without secrets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from infaas.observe.log import HIDDEN, bound, configure_logging, get_logger, redact
from infaas.settings import LogSettings


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    config = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to answers"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_json_line_holds_the_event_its_source_and_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"), component="controller")
    get_logger("a.b").info("query answered", variant="v1", ms=1.5)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "query answered", "level": "info", "source": "a.b", "component": "controller", "variant": "v1",
        "ms": 1.5,
    }  # fmt: skip


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json", level="warning"))
    get_logger("x").info("no")
    logging.getLogger("lib").info("no")
    get_logger("x").warning("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


async def test_bound_facts_go_into_every_line_also_of_tasks_and_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))

    async def work() -> None:
        get_logger("x").info("inside")

    with bound(request_id="r1"):
        await asyncio.create_task(work(), name="work")
        logging.getLogger("lib").warning("theirs %d", 3)
    get_logger("x").info("outside")
    inside, theirs, outside = lines(capsys)
    assert inside["request_id"] == theirs["request_id"] == "r1"
    assert (theirs["event"], theirs["source"], theirs["level"]) == ("theirs 3", "lib", "warning")
    assert "request_id" not in outside


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_a_line(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format=form))
    secret = "hunter2secret"
    log = get_logger("x")
    log.info("a", token=secret, password=secret, Authorization=f"Bearer {secret}", api_key=secret, cookie=secret)
    log.info("b", headers={"authorization": secret, "deep": [{"client_secret": secret}]})
    log.info("c", url=f"redis://user:{secret}@host/0", text=f"sent 'authorization: Bearer {secret}' to it")
    log.info(f"connecting to rediss://:{secret}@host")
    log.error("d", error=ValueError(f"postgresql://u:{secret}@db failed"))
    try:
        raise RuntimeError(f"redis://u:{secret}@host refused")  # noqa: TRY301
    except RuntimeError:
        log.exception("e")
        logging.getLogger("lib").exception("f redis://u:%s@host", secret)
    written = capsys.readouterr().err
    assert secret not in written
    assert HIDDEN in written
    assert "refused" in written


def test_redacting_keeps_everything_else() -> None:
    value = {"name": "v1", "n": 3, "none": None, "token": "", "list": ["a", {"b": 1}], "url": "http://host:80/x@y"}
    assert redact(value) == value


def test_a_closed_standard_error_does_not_fail_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(LogSettings())

    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    get_logger("x").error("nobody reads this")
    logging.getLogger("lib").error("nor this")


def test_configuring_again_takes_effect_for_loggers_already_made(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(level="error"))
    log = get_logger("x")
    log.info("no")
    configure_logging(LogSettings(format="json"))
    log.info("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]
