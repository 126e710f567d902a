"""Whatever strangers send, both protocols' readers return a value or refuse in words; values survive the way back.

The contract tests try the same at length.
"""

from __future__ import annotations

import numpy as np
import pytest
from fuzzed_parsers import CASES, attempts
from fuzzing import value_or_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError
from infaas.rpc import tensors_json
from infaas.rpc.codec import decode, encode, from_plain, to_plain
from infaas.rpc.requirements import read_requirements
from infaas.testing.builders import a_task

SHORT = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("case", CASES)
def test_nothing_but_a_value_or_a_refusal_in_words(case: str) -> None:
    attempts(case, SHORT)


@SHORT
@given(
    st.lists(
        st.builds(
            TensorSpec, st.text(max_size=5), st.sampled_from(list(Datatype)), st.lists(st.integers(-1, 9)).map(tuple)
        ),
        max_size=3,
    ).map(tuple),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_domain_values_survive_the_codec(specs: tuple[TensorSpec, ...], labels: dict[str, str], cost: float) -> None:
    task = Task(a_task("t").name, specs, specs, labels=labels, defaults=TaskDefaults(max_cost=cost))
    assert decode(encode(task), Task) == task
    assert from_plain(to_plain(task), Task) == task


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]},NaN]}',
        b'{"id":"\\udfff","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN,1' + b"0" * 400 + b"]}]}",
        b'{"inputs":[{"name":"x","shape":[1' + b"0" * 4299 + b'],"datatype":"FP32","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[9' + b"0" * 5000 + b'],"datatype":"INT8","data":[1]}]}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1'
        + b"0" * 999
        + b"}}]}",
    ],
    ids=["half-a-pair-in-bytes", "half-a-pair-in-id", "int-too-big-for-float", "shape-of-4300-digits", "5000", "size"],
)
def test_what_the_fuzzer_found_stays_refused(body: bytes) -> None:
    assert value_or_refusal(lambda: tensors_json.decode_request(body)) is None


@pytest.mark.parametrize("count", [1, 5000])
def test_a_flood_of_unknown_headers_is_named_in_part(count: int) -> None:
    flood = {f"x-infaas-{'y' * 3000}{n}": "1" for n in range(count)}
    with pytest.raises(InvalidError) as refusal:
        read_requirements(flood, {}, TaskDefaults())
    assert "unknown header 'x-infaas-yyy" in refusal.value.text
    assert len(refusal.value.text) < 2000


def test_a_parsed_infinity_was_sent_as_one() -> None:
    body = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[NaN,-Infinity]}]}'
    (tensor,) = tensors_json.decode_request(body).inputs
    values = np.frombuffer(tensor.data, np.float32)
    assert np.isnan(values[0])
    assert values[1] == -np.inf
