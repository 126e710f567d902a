"""Logging: one structured line per decision, on standard error, for people (console) or machines (JSON).

Lines of libraries that use `logging` pass through the same renderer. A secret never reaches a line: values under keys
that name one are replaced, and so are passwords inside URLs and bearer tokens inside texts.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from infaas.settings import LogSettings

HIDDEN = "[hidden]"
_SECRET_KEYS = re.compile(r"token|passw|secret|authorization|api_?key|credential|cookie", re.IGNORECASE)
_TEXT_SECRETS = (
    (
        re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?P<tail>@)", re.IGNORECASE),
        rf"\g<head>{HIDDEN}@",
    ),
    (re.compile(r"(?P<head>\bbearer\s+)(?!\[hidden\])[A-Za-z0-9._~+/=-]+", re.IGNORECASE), rf"\g<head>{HIDDEN}"),
)
_NOISY = (
    "httpx",
    "httpcore",
    "uvicorn.access",
    "alembic",
    "asyncio",
    "redis",
    "sqlalchemy.engine",
    "grpc",
    "urllib3",
    "docker",
)


def configure_logging(settings: LogSettings, *, component: str = "") -> None:
    """Set up this process's logging; may be called again. `component` goes into every line."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared = _shared_processors(component)
    renderer = _renderer(settings.format)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_stderr_factory,
        cache_logger_on_first_use=False,
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_source, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines say where they come from. Before `configure_logging` it writes console lines."""
    if not structlog.is_configured():
        configure_logging(LogSettings())
    return cast("FilteringBoundLogger", structlog.get_logger(source=name))


@contextmanager
def bound(**facts: object) -> Iterator[None]:
    """Put facts such as `request_id` into every line written inside, also by tasks started there."""
    with structlog.contextvars.bound_contextvars(**facts):
        yield


def redact(value: object) -> object:
    """The value with every secret in it replaced, however deep."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key) and item else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        for pattern, replacement in _TEXT_SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    return value


def _is_secret(key: object) -> bool:
    return isinstance(key, str) and _SECRET_KEYS.search(key) is not None


def _redact_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    return cast("MutableMapping[str, Any]", redact(event))


def _name_source(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A library's logger name, under the key that our own lines use."""
    event["source"] = event["_record"].name
    return event


def _shared_processors(component: str) -> list[Processor]:
    def add_component(_logger: object, _method: str, event: EventDict) -> EventDict:
        if component:
            event.setdefault("component", component)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # As text, before the redaction: a traceback's last line may quote a URL. Never with local variables.
        structlog.processors.format_exc_info,
        add_component,
    ]


def _renderer(form: str) -> list[Processor]:
    """Redaction comes right before rendering, so that no processor can add a secret after it."""
    if form == "json":
        return [_redact_event, structlog.processors.JSONRenderer(default=str)]
    return [
        _redact_event,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        ),
    ]


def _write_line(text: str) -> None:
    """One write per line. A closed or broken standard error must never fail the work that is being logged, and there
    is nowhere left to report it to."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


class _StderrLogger:
    """What structlog hands rendered lines to; looks standard error up each time, since programs redirect it."""

    def msg(self, message: str) -> None:
        _write_line(message)

    log = debug = info = warn = warning = error = err = fatal = critical = failure = exception = msg


def _stderr_factory(*_args: object) -> _StderrLogger:
    return _StderrLogger()


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _write_line(self.format(record))
