"""The questions that this benchmark answers, each by one function."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.questions.answer import Answer
from dataplane.questions.batching import of_batching
from dataplane.questions.decision import of_decision
from dataplane.questions.flame import of_flame
from dataplane.questions.gateway import of_gateway
from dataplane.questions.overload import of_overload
from dataplane.questions.peers import of_peers
from dataplane.questions.soak import of_soak

QUESTIONS: dict[str, Callable[..., Answer]] = {
    "decision": of_decision,
    "gateway": of_gateway,
    "batching": of_batching,
    "overload": of_overload,
    "peers": of_peers,
    "soak": of_soak,
    "flame": of_flame,
}
