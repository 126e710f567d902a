"""A whole system behind a token, what it holds at a moment, and the table of what bad input brought."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from raw_callers import CREDENTIAL, TOKEN, GrpcCaller, Seen
from running_system import System, wait_for

from infaas.client import Client

MAX_BODY_BYTES = 4 * 2**20
MAX_UPLOAD_BYTES = 64 * 2**20
READ_TIMEOUT_S = 3.0
OF_WORK = ("infaas_in_flight", "infaas_queue_size", "infaas_queue_bytes", "infaas_queue_tenants")
SETTINGS = {
    "INFAAS_AUTH__TOKEN": TOKEN,
    "INFAAS_TOKEN": TOKEN,
    "INFAAS_CONTROLLER__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    "INFAAS_CONTROLLER__MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
    "INFAAS_CONTROLLER__MAX_QUEUE_SIZE": "8",
    "INFAAS_CONTROLLER__READ_TIMEOUT_S": str(READ_TIMEOUT_S),
    "INFAAS_CONTROLLER__WORKER_LOST_AFTER_S": "60",  # a stopped worker is waited for, not lost
    "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05",
    "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
}


@dataclass
class Guarded:
    """The system, and the questions that every test here ends with."""

    system: System
    grpc: GrpcCaller

    @property
    def port(self) -> int:
        return self.system.endpoints.http_port

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self.system.program(name).pid)

    def held(self) -> dict[str, float]:
        """Every gauge of work in the system that is not 0."""
        text = httpx.get(self.system.endpoints.metrics_url, headers=CREDENTIAL).text
        found = {}
        for family in text_string_to_metric_families(text):
            if family.name in OF_WORK:
                found |= {f"{s.name}{sorted(s.labels.values())}": s.value for s in family.samples if s.value}
        return found

    def assert_nothing_is_held(self) -> None:
        wait_for(lambda: not self.held(), "in-flight and queues to be empty", 30.0)

    def assert_it_serves(self) -> None:
        with Client(self.system.endpoints.url, TOKEN) as client:
            row = np.arange(16, dtype=np.int32).reshape(1, 16)
            answer = client.infer("simple", {"INPUT0": row, "INPUT1": row})
            np.testing.assert_array_equal(answer.outputs["OUTPUT0"], row * 2)


class Table:
    """What each case brought, as it was seen: printed at the end, and written where INFAAS_TEST_BAD_INPUT_TABLE is."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def note(self, protocol: str, name: str, seen: Seen) -> None:
        text = " ".join(seen.text.split()).replace("|", "\\|")
        shown = text if len(text) <= 110 else f"{text[:107]}..."
        self.rows.append(f"| {protocol} | {name} | {seen.status or 'closed'} | {seen.code} | {shown} |")

    def write(self) -> None:
        text = "\n".join(["| over | what | status | code | text |", "|--|--|--|--|--|", *self.rows])
        print(f"\n{text}")
        if path := os.environ.get("INFAAS_TEST_BAD_INPUT_TABLE"):
            Path(path).write_text(f"{text}\n")
