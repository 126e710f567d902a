"""A cluster that nobody asks anything: what it says of itself then, and how it answers whoever comes after all.

`benchmarks/quiet.py` waits for minutes, `tests/fault/cluster` for seconds, with shorter delays.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from prometheus_client.parser import text_string_to_metric_families

from infaas.client import Client, Requirements
from infaas.demo import family
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.kept_fleet import running_with_fleet
from infaas.testing.worker_driver import ControllerEnd
from infaas.up.crew import Crew, MemberState

_DUE = ("demand_cores", "wanted_cores", "there_cores", "waiting_core_s", "spent_usd_per_hour")
"""What the fleet knows at any time."""
_INFAAS = Path(sys.executable).with_name("infaas")


@contextmanager
def cluster_that_scales(
    folder: Path, *, min_workers: int, unload_after_s: float, shrink_after_s: float
) -> Iterator[Cluster]:
    """Two controllers whose fleet makes all the workers there are. Whatever happens, none is left."""
    settings = {
        "INFAAS_FLEET__PROVIDER": "local",
        "INFAAS_FLEET__DOWNSCALE_DELAY_S": f"{shrink_after_s:g}",
        "INFAAS_FLEET__FOLDER": str(folder / "fleet"),
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_TO_ZERO_DELAY_S": f"{unload_after_s:g}",
        "INFAAS_POOLS": f"{{local: {{workers: 0, min_workers: {min_workers}, max_workers: 2, cores: 1, "
        "memory_bytes: 1000000000}}",
    }
    cluster = Cluster(folder, controllers=2, workers=0, settings=settings, fleet_workers=min_workers)
    with running_with_fleet(cluster, folder / "fleet"):
        yield cluster


def fleet_size(cluster: Cluster) -> int:
    """Machines that run."""
    return sum(one.state is MemberState.RUNNING for one in Crew(cluster.folder / "fleet").members())


def replicas(cluster: Cluster) -> int:
    """Instances of whatever, as the first controller sees it."""
    with cluster.client() as client:
        return sum(len(worker.instances) for worker in client.workers() if worker.is_connected)


def no_numbers(cluster: Cluster) -> list[str]:
    """Wherever a number is due and none is said: in the metrics of each controller, and in what the command line prints
    of the autoscalers in each form."""
    found = []
    for name in cluster.controllers:
        with urllib.request.urlopen(f"{cluster.metrics_url(name)}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        found += [
            f"{name}: {one.name}{one.labels} is {one.value}"
            for each in families
            for one in each.samples
            if not math.isfinite(one.value)
        ]
        found += _said(cluster.url(name))
    return found


def _said(url: str) -> Iterator[str]:
    # A leader that has just come, or is late, has said nothing that is still true.
    wait_for(lambda: _read_status(url)["fleet"] is not None, f"{url} to know how the fleet is")
    printed = {form: _status(url, form) for form in ("table", "json", "yaml")}
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        document: Mapping[str, Any] = read(printed[form])
        yield from (
            f"{form}: {name} is {document['fleet'][name]}" for name in _DUE if _is_none(document["fleet"][name])
        )
        yield from (
            f"{form}: {path} is {value}" for path, value in _numbers(document, form) if not math.isfinite(value)
        )
    words = printed["table"].lower().split()
    yield from (f"the table says {word!r}" for word in ("nan", "none", "inf") if word in words)
    if "not known" in printed["table"]:
        yield f"the table says what is not known: {printed['table']}"


def _status(url: str, form: str) -> str:
    return _infaas("autoscaler", "status", "--url", url, "-o", form)


def _read_status(url: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(_status(url, "json"))
    return found


def _is_none(value: object) -> bool:
    return not isinstance(value, int | float)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, f"{path}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _numbers(each, f"{path}[{number}]")


def _infaas(*words: str) -> str:
    return subprocess.run([_INFAAS, *words], check=True, capture_output=True, text=True, timeout=60).stdout


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    took_s: float
    """As its caller saw it."""
    load_s: float
    """What its worker says that loading took."""
    was_cold: bool


def ask_once(cluster: Cluster, model: str, controller: int = 0) -> FirstAnswer:
    """One query. Raises QueryError with the reason of a refusal."""
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        image = np.asarray(data[family.INPUT][:1], dtype=np.float32)
    with cluster.client(controller) as client:
        client.is_ready()  # the connection is there
        began = time.monotonic()
        answer = client.infer(model, {family.INPUT: image}, Requirements(slo_latency_ms=30_000, slo_accuracy_min=0.0))
        took_s = time.monotonic() - began
        load_s = asyncio.run(_load_s(client, answer.served.variant))
        return FirstAnswer(took_s, load_s, answer.served.cold_start)


async def _load_s(client: Client, variant: str | None) -> float:
    """Of the first of its instances, as the worker that has it says."""
    for worker in client.workers():
        ids = [one.id for one in worker.instances if one.variant == variant]
        if ids:
            async with ControllerEnd(worker.address) as end:
                report = await end.first_report()
                return next(load.load_s for load in report.loads if load.instance in ids)
    raise RuntimeError(f"no worker has {variant}")
