"""Which requests go the fast way: queries in their usual form, and nothing else. What is remembered is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.api.http_way import (
    FAST_BODY_BYTES,
    HEADS_KEPT,
    KEPT_HEAD_BYTES,
    Head,
    Heads,
    fast_head,
    read_fields,
)

from infaas.domain.query import Requirements
from infaas.domain.task import TaskDefaults

TARGET = b"/v2/models/digits/infer"
USUAL = [(b"host", b"a"), (b"content-length", b"12"), (b"x-infaas-slo-latency-ms", b"50")]


def with_field(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [*USUAL, (name, value)]


@pytest.mark.parametrize(
    ("target", "handle", "version"),
    [
        (TARGET, "digits", ""),
        (b"/v2/models/digits/versions/3/infer", "digits", "3"),
        (b"/v2/models/digits/versions/new/infer", "digits", "new"),
        (b"/v2/models/a.b_c-d~1/infer", "a.b_c-d~1", ""),
    ],
)
def test_a_usual_query_goes_the_fast_way(target: bytes, handle: str, version: str) -> None:
    head = fast_head(target, USUAL)
    assert head is not None
    assert (head.handle, head.version, head.body_bytes) == (handle, version, 12)
    assert head.fields == {"content-length": "12", "x-infaas-slo-latency-ms": "50"}


@pytest.mark.parametrize(
    "target",
    [
        b"/v2/models/digits",
        b"/v2/models/digits/ready",
        b"/v2/models/digits/infer?a=b",
        b"/v2/models/digits/infer#a",
        b"/v2/models/dig%69ts/infer",
        b"/v2/models//infer",
        b"/v2/models/a/b/infer",
        b"/v2/models/digits/versions//infer",
        b"/v2/models/../infer",
        b"http://host/v2/models/digits/infer",
        b"/v2/models/" + b"x" * 129 + b"/infer",
        b"/v2/models/digits/infer\n",
        b"*",
        b"",
    ],
)
def test_any_other_target_goes_the_ordinary_way(target: bytes) -> None:
    is_dots = target == b"/v2/models/../infer"  # a name like any other here: nothing is registered under it
    assert (fast_head(target, USUAL) is not None) == is_dots


@pytest.mark.parametrize(
    "raw",
    [
        [(b"host", b"a")],
        with_field(b"content-length", b"12"),
        [(b"content-length", b"")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1e3")],
        [(b"content-length", b"%d" % (FAST_BODY_BYTES + 1))],
        with_field(b"transfer-encoding", b"chunked"),
        with_field(b"content-encoding", b"gzip"),
        with_field(b"content-encoding", b"identity"),
        with_field(b"accept-encoding", b"gzip"),
        with_field(b"accept-encoding", b" Deflate;q=1"),
        with_field(b"expect", b"100-continue"),
        with_field(b"upgrade", b"h2c"),
        with_field(b"http2-settings", b"AAM"),
    ],
)
def test_an_unusual_form_goes_the_ordinary_way(raw: list[tuple[bytes, bytes]]) -> None:
    assert fast_head(TARGET, raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        with_field(b"accept-encoding", b"gzip, deflate"),
        with_field(b"accept-encoding", b"identity"),
        with_field(b"accept-encoding", b"gzip;q=0"),
        with_field(b"authorization", b"Bearer x"),
        with_field(b"x-infaas-slo-latency-ms", b"70"),
        [(b"content-length", b"%d" % FAST_BODY_BYTES)],
    ],
)
def test_what_changes_neither_framing_nor_answer_stays_on_the_fast_way(raw: list[tuple[bytes, bytes]]) -> None:
    assert fast_head(TARGET, raw) is not None


def test_a_field_sent_twice_is_joined() -> None:
    raw = [(b"x-infaas-objective", b"cost"), (b"x-other", b"1"), (b"x-infaas-objective", b"latency")]
    assert read_fields(raw) == {"x-infaas-objective": "cost, latency"}


def test_the_same_header_is_read_once_and_what_is_of_one_query_is_its_own() -> None:
    heads = Heads()
    first = heads.of(TARGET, USUAL)
    again = heads.of(TARGET, list(USUAL))
    assert first is not None
    assert again is not None
    assert again[0] is first[0]
    named = heads.of(TARGET, with_field(b"x-request-id", b"a"))
    other = heads.of(TARGET, with_field(b"x-request-id", b"b"))
    assert named is not None
    assert other is not None
    assert named[0] is other[0] is first[0]
    assert (named[1]["x-request-id"], other[1]["x-request-id"]) == ("a", "b")
    assert "x-request-id" not in first[1]
    different = heads.of(TARGET, [*USUAL[:2], (b"x-infaas-slo-latency-ms", b"51")])
    assert different is not None
    assert different[0] is not first[0]


def test_requirements_are_remembered_for_the_same_defaults_only() -> None:
    found = Heads().of(TARGET, USUAL)
    assert found is not None
    head, defaults = found[0], TaskDefaults()
    assert head.known_requirements(defaults) is None
    wanted = Requirements(latency_s=0.05)
    head.remember(defaults, wanted)
    assert head.known_requirements(defaults) is wanted
    assert head.known_requirements(TaskDefaults()) is None


def test_memory_for_headers_is_bounded_in_number_and_size() -> None:
    heads = Heads()
    for number in range(3 * HEADS_KEPT):
        assert heads.of(TARGET, with_field(b"x-other", b"%d" % number)) is not None
    assert heads.kept <= HEADS_KEPT
    before = heads.kept
    assert heads.of(TARGET, with_field(b"x-other", b"y" * KEPT_HEAD_BYTES)) is not None
    assert heads.kept == before


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"host", b"content-length", b"x-request-id", b"traceparent", b"x-infaas-objective", b"accept-encoding"]
        ),
        st.sampled_from([b"1", b"12", b"gzip", b"", b"a b"]),
    ),
    max_size=6,
)


@given(st.lists(FIELDS, min_size=1, max_size=8))
def test_memory_changes_nothing(requests: list[list[tuple[bytes, bytes]]]) -> None:
    heads = Heads()
    for raw in requests * 2:
        found, alone = heads.of(TARGET, raw), fast_head(TARGET, raw)
        assert (found is None) == (alone is None)
        if found is not None and alone is not None:
            assert (found[0].handle, found[0].version, found[0].body_bytes) == ("digits", "", alone.body_bytes)
            assert found[1] == alone.fields


def on_the_wire(fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [b"POST " + TARGET + b" HTTP/1.1", *(b"%s: %s" % field for field in fields)]
    return b"\r\n".join([*lines, b"", body])


def head_of(heads: Heads, fields: list[tuple[bytes, bytes]]) -> Head:
    found = heads.of(TARGET, fields)
    assert found is not None
    return found[0]


def test_a_header_that_came_before_is_known_by_its_bytes() -> None:
    heads = Heads()
    head = head_of(heads, USUAL)
    heads.remember(on_the_wire(USUAL, b"a" * 12), head)
    data = on_the_wire(USUAL, b"b" * 12)
    assert heads.as_sent(data) == (head, len(data) - 12)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        on_the_wire(USUAL, b"a" * 11),
        on_the_wire(USUAL, b"a" * 13),
        on_the_wire(USUAL, b"a" * 12)[1:],
        b"\r\n" + on_the_wire(USUAL, b"a" * 12),
        on_the_wire(USUAL, b"a" * 12) + on_the_wire(USUAL, b"a" * 12),
        on_the_wire(with_field(b"x", b"1"), b"a" * 12),
        on_the_wire(USUAL, b"a" * 12).replace(b"50", b"51"),
        on_the_wire(USUAL, b"a" * 12).replace(b"\r\n", b"\n"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_anything_but_the_same_header_and_a_whole_body_is_parsed(data: bytes, *, is_first: bool) -> None:
    heads = Heads()
    usual = on_the_wire(USUAL, b"a" * 12)
    heads.remember(usual, head_of(heads, USUAL))
    if not is_first:
        assert heads.as_sent(usual) is not None
    assert heads.as_sent(data) is None


def test_headers_that_come_by_turns_are_each_known() -> None:
    heads = Heads()
    other = with_field(b"x", b"1")
    sent = [(on_the_wire(fields, b"a" * 12), head_of(heads, fields)) for fields in (USUAL, other)]
    for data, head in sent:
        heads.remember(data, head)
    for data, head in sent * 2:
        assert heads.as_sent(data) == (head, len(data) - 12)


@given(st.binary(max_size=64).map(lambda noise: noise.replace(b"\r\n\r\n", b"")), st.integers(0, 64))
def test_a_body_that_looks_like_a_headers_end_is_none(noise: bytes, at: int) -> None:
    body = (noise[:at] + b"\r\n\r\n" + noise[at:])[:12].ljust(12, b"\n")
    heads = Heads()
    head = head_of(heads, USUAL)
    heads.remember(on_the_wire(USUAL, body), head)
    data = on_the_wire(USUAL, body)
    assert heads.as_sent(data) == (head, len(data) - len(body))


def test_headers_kept_by_their_bytes_are_bounded_in_number_and_size() -> None:
    heads = Heads()
    head = head_of(heads, USUAL)
    for number in range(HEADS_KEPT + 10):
        heads.remember(on_the_wire(with_field(b"x", b"%d" % number), b"a" * 12), head)
    assert heads.kept <= HEADS_KEPT + 1
    long = on_the_wire(with_field(b"x", b"y" * KEPT_HEAD_BYTES), b"a" * 12)
    heads.remember(long, head)
    assert heads.as_sent(long) is None
