"""Documents that another version wrote: fields that are not known are passed over, those that lack have defaults."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from infaas_controller.scalings import Scalings

from infaas.clock import SystemClock
from infaas.domain.action import Autoscaling
from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import ControllerDemand, FleetStatus, Intent
from infaas.domain.ids import WorkerId
from infaas.errors import InvalidError
from infaas.rpc.codec import decode, encode
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.store.base import Kind
from infaas.store.memory import MemoryStore
from infaas.store.view import ViewKeeper
from infaas.testing.builders import a_variant, a_worker

DOCUMENTS = [
    a_variant(),
    a_worker(),
    Intent("i-1", "small", WorkerId("w"), 1.0),
    ControllerDemand(1.0),
    FleetStatus(1.0, "c-1", "local", False, (), None, 0.0, None, 0, 0.0),
    Autoscaling(True),
]


def with_more(plain: Any) -> Any:
    """As a later release may write it: a further field in every object that is one of ours."""
    return {**plain, "of_a_later_release": {"any": ["thing"]}}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_a_field_that_is_not_known_is_passed_over(document: Any) -> None:
    assert is_dataclass(document)
    more = json.dumps(with_more(json.loads(encode(document))))
    assert decode(more, type(document)) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_a_field_with_a_default_may_lack(document: Any) -> None:
    from dataclasses import MISSING

    plain = json.loads(encode(document))
    optional = [
        one.name for one in fields(document) if one.default is not MISSING or one.default_factory is not MISSING
    ]
    short = {name: value for name, value in plain.items() if name not in optional}
    decoded = decode(json.dumps(short), type(document))
    assert all(getattr(decoded, name) == getattr(document, name) for name in short)


async def test_a_record_that_cannot_be_read_leaves_the_others_and_what_was_known() -> None:
    store = MemoryStore(SystemClock())
    await store.put(Kind.WORKER, "w1", encode(a_worker("w1")))
    await store.put(Kind.WORKER, "w2", b'{"id": "w2", "state": "STATE-OF-A-LATER-RELEASE"}')
    with pytest.raises(InvalidError):
        decode(b'{"id": "w2", "state": "STATE-OF-A-LATER-RELEASE"}', WorkerRecord)
    keeper = ViewKeeper(store, SystemClock())
    await keeper._list()
    assert set(keeper.view.workers) == {"w1"}


def test_a_step_of_a_cause_that_is_not_known_costs_what_a_worker_says_of_its_autoscaler_and_nothing_else() -> None:
    scalings = Scalings()
    scalings.heard(WorkerId("w1"), encode(Autoscaling(True)))
    scalings.heard(WorkerId("w1"), b'{"is_on": true, "steps": [{"cause": "of-a-later-release"}]}')
    assert [one.worker for one in scalings.document().workers] == ["w1"]


def test_a_message_with_a_field_or_a_body_that_is_not_known_is_read() -> None:
    report = pb.WorkerReport(worker=b"{}", sequence=3).SerializeToString() + b"\x9a\x06\x02hi"  # field 99
    assert pb.WorkerReport.FromString(report).sequence == 3
    message = pb.WorkerMessage.FromString(b"\x9a\x06\x02hi")
    assert message.WhichOneof("body") is None
