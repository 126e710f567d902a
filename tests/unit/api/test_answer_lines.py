"""Header lines that are written in one step are those that would be written one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.api.headers import Caller, answer_fields, answer_lines, lines_of
from infaas_controller.ports import Outcome

from infaas.domain.ids import DecisionId, VariantName, WorkerId

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECONDS = st.floats(0, 100)
OUTCOMES = st.builds(
    Outcome,
    st.just(DecisionId("d-c-1")),
    variant=st.none() | st.just(VariantName("v1")),
    worker=st.none() | st.just(WorkerId("w1")),
    attempts=st.integers(0, 3),
    queue_s=SECONDS,
    run_s=SECONDS,
    total_s=SECONDS,
    slo_met=st.none() | st.booleans(),
    cold_start=st.booleans(),
    fallback=st.none() | st.just("below ≥ floor"),
)
CALLERS = st.builds(Caller, st.just("mine"), st.none() | st.just(TRACE), st.none() | st.just("a=b"))


@given(CALLERS, OUTCOMES)
def test_lines_hold_every_field_in_its_place(caller: Caller, outcome: Outcome) -> None:
    assert answer_lines(caller, outcome) == lines_of(answer_fields(caller, outcome))
