"""What is read of W3C trace context, and where a collector's traces go."""

from __future__ import annotations

import pytest

from infaas.domain.query import TraceContext
from infaas.observe.otlp import traces_url
from infaas.observe.trace import is_sampled
from infaas.settings import load_settings

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True), ("01-later", True)]
)
def test_the_lowest_flag_says_that_the_caller_records(flags: str, sampled: bool) -> None:
    trace = TraceContext(f"00-{TRACE}-b7ad6b7169203331-{flags}")
    assert trace.trace_id == TRACE
    assert is_sampled(trace) is sampled


@pytest.mark.parametrize("text", ["", "00", "00-a-b-"])
def test_what_is_no_context_is_not_recorded(text: str) -> None:
    assert not is_sampled(TraceContext(text))


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://vendor.example/otlp", "https://vendor.example/otlp/v1/traces"),
        ("https://vendor.example/otlp/v1/traces", "https://vendor.example/otlp/v1/traces"),
    ],
)
def test_a_collectors_address_is_completed(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_tracing_is_set_by_file_or_variable() -> None:
    environ = {"INFAAS_OBSERVE__OTLP_ENDPOINT": "http://c:4318", "INFAAS_OBSERVE__TRACE_RATIO": "0.1"}
    observe = load_settings(environ=environ).observe
    assert (observe.otlp_endpoint, observe.trace_ratio) == ("http://c:4318", 0.1)
