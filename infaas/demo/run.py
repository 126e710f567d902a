"""`infaas demo`: the whole of INFaaS on real input, in one command.

It brings up a private system (or uses a running one), registers a family of digit classifiers and lets the system make
and measure their variants, sends real scans under a dozen kinds of requirements, checks every answer against its
label, and shows what served whom, how fast, how accurately and at what cost.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from infaas.cli.output import console, show
from infaas.cli.variants import show_variants
from infaas.client import Client, QueryError
from infaas.client_tensors import Array
from infaas.control import RegistrationDocument, VariantDocument
from infaas.demo import builds, family
from infaas.demo.frontier import draw
from infaas.demo.report import Measured, Sent, SetResult, result_table, summarise
from infaas.demo.sets import QuerySet, counts, query_sets
from infaas.errors import InfaasError, UnavailableError
from infaas.rpc.codec import to_plain

TASK = "digits"
SIMPLE_TASK = "simple"
SIMPLE_MODEL = "simple-sum"
PROFILE_BUDGET_S = 3.0
USUAL_VARIANTS = 16
"""At least so many come of the family on two cores or more; a machine with one makes no multi-threaded ones."""
SENDERS = 2
"""Callers at a time: this machine's cores also run the system."""
WARM_WITHIN_S = 20.0
SIMPLE_QUERIES = 100


def run(output: Path, *, queries: int, is_kept: bool, running: Client | None = None) -> None:
    """Raises InfaasError when any part does not work; a private system is taken down then."""
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with _system(running, is_kept) as client:
        _register_all(client)
        print(f"All serve {time.monotonic() - began:.0f} s after the start.")
        variants = [v for v in client.variants(task=TASK) if v.is_current and v.state == "READY"]
        print(f"\n{how_many(len(variants), max((worker.cores for worker in client.workers()), default=0))}\n")
        show_variants(variants)
        if not variants:
            raise UnavailableError(f"no variant of {TASK} serves; `infaas model list` says why")
        picture = output / "frontier.svg"
        draw(variants, f"{TASK}: latency, accuracy and cost of {len(variants)} variants", picture)
        results = _send_all(client, variants, queries)
        _check_simple(client)
        print()
        show(result_table(results))
        _explain_one(client, results)
        _store(output / "results.json", variants, results)
        _summary(results, variants, time.monotonic() - began, output)
        _say_next(client, output, is_kept=is_kept)


def how_many(variants: int, cores: int) -> str:
    """What is said of the number of variants, which depends on the machine's cores and speed."""
    text = f"{variants} variants of {TASK} serve now on {cores} core(s) (* on the latency-accuracy-cost frontier)"
    if variants >= USUAL_VARIANTS:
        return f"{text}:"
    why = "two cores make more" if cores < 2 else "`infaas model status MODEL` says what became of the others"
    return f"{text}; {USUAL_VARIANTS} are usual, {why}:"


@contextmanager
def _system(running: Client | None, is_kept: bool) -> Iterator[Client]:
    """The running system, or one of our own on free ports that ends with us unless it is kept."""
    if running is not None:
        yield running
        return
    from infaas.cli.system import up_environ
    from infaas.cli.target import endpoints_of
    from infaas.up.detached import start_detached, stop
    from infaas.up.record import is_up, read_up
    from infaas.up.tether import SUPERVISOR_PID

    state_dir = Path(tempfile.mkdtemp(prefix="infaas-demo-"))
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    env = up_environ(state_dir=state_dir, config=None, controller=free, workers=None)
    env["INFAAS_GENERATOR__PROFILE_BUDGET_S"] = str(PROFILE_BUDGET_S)
    if not is_kept:
        env[SUPERVISOR_PID] = str(os.getpid())
    is_good = False
    try:
        print("Bringing up a private system ...")
        record = start_detached(state_dir, env)
        endpoints = endpoints_of(state_dir)
        if endpoints is None:
            raise UnavailableError(f"the controller is gone again; see {state_dir}/logs/controller.log")
        print(f"Ready after {record.ready_after_s} s at {endpoints.url} (state in {state_dir}).")
        with Client(endpoints.url) as client:
            yield client
        is_good = True
    finally:
        if not (is_kept and is_good) and is_up(read_up(state_dir)):
            stop(state_dir)
        if is_good and not is_kept:
            shutil.rmtree(state_dir)
        elif not is_good:
            print(f"The system's logs are in {state_dir}/logs.")


def _register_all(client: Client) -> None:
    """Register the family and `simple`, and follow all builds at once."""
    print(f"Registering {len(family.FAMILY)} models for the task {TASK}, and {SIMPLE_MODEL} for {SIMPLE_TASK} ...")
    # The first one creates the task; the others then fit themselves to it.
    first, *others = family.FAMILY
    registered = [_register(client, first)]
    with ThreadPoolExecutor(SENDERS, "register") as pool:
        registered += pool.map(lambda model: _register(client, model), others)
    registered.append(
        client.register(
            family.path(family.SIMPLE_FILE),
            task=SIMPLE_TASK,
            name=SIMPLE_MODEL,
            evaluation=family.path(family.SIMPLE_EVAL_FILE),
        )
    )
    builds.wait_for_all(client, [(one.model, one.version) for one in registered], console())


def _register(client: Client, model: family.FamilyModel) -> RegistrationDocument:
    return client.register(
        family.path(model.file),
        task=TASK,
        name=model.name,
        evaluation=family.path(family.EVAL_FILE),
        renames=model.renames,
        labels=["source=demo"],
    )


def _send_all(client: Client, variants: Sequence[VariantDocument], queries: int) -> list[SetResult]:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        images, labels = data[family.INPUT], data["label"]
    measured = {v.name: Measured(v.accuracy.value if v.accuracy else None, v.cost_usd_per_1k) for v in variants}
    sets = query_sets(TASK, variants)
    print(f"\nSending {queries} queries with held-out scans under {len(sets)} requirement sets ...")
    results = []
    for one, count in zip(sets, counts(sets, queries), strict=True):
        _warm(client, one, images)
        results.append(summarise(one, _send(client, one, count, images, labels), measured))
        last = results[-1]
        print(f"  {one.name}: {last.answered} of {last.sent} answered", flush=True)
    return results


def _warm(client: Client, one: QuerySet, images: Array) -> None:
    """Ask until the set's variant is loaded, so that the numbers tell of serving and not of loading.

    A refusal that a retry cannot change ends it: it is the set's answer.
    """
    deadline = time.monotonic() + WARM_WITHIN_S
    rows = images[: one.batch]
    while time.monotonic() < deadline:
        try:
            answer = client.infer(one.handle, {family.INPUT: rows}, one.requirements)
        except QueryError as error:
            if one.is_refused or not error.is_retryable:
                return
            time.sleep(min(error.retry_after_s or 0.1, 1.0))
            continue
        if not answer.served.cold_start:
            return


def _send(client: Client, one: QuerySet, count: int, images: Array, labels: Array) -> list[Sent]:
    """`count` queries from a few callers, each sending its next when it has its last answer."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def caller(_: int) -> list[Sent]:
        sent: list[Sent] = []
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return sent
            rows = (np.arange(one.batch) + number * one.batch) % len(images)
            sent.append(_query(client, one, images[rows], labels[rows]))

    with ThreadPoolExecutor(SENDERS, "caller") as pool:
        return [query for sent in pool.map(caller, range(SENDERS)) for query in sent]


def _query(client: Client, one: QuerySet, images: Array, labels: Array) -> Sent:
    began = time.perf_counter()
    try:
        answer = client.infer(one.handle, {family.INPUT: images}, one.requirements)
    except QueryError as error:
        took_ms = 1000 * (time.perf_counter() - began)
        return Sent(took_ms, code=error.code.value, decision_id=error.served.decision_id, rows=len(images))
    took_ms = 1000 * (time.perf_counter() - began)
    digits = answer.outputs[family.OUTPUT].argmax(axis=1)
    return Sent(
        took_ms,
        variant=answer.served.variant,
        decision_id=answer.served.decision_id,
        fallback=answer.served.fallback,
        correct=int((digits == labels).sum()),
        rows=len(images),
    )


def _check_simple(client: Client) -> None:
    """The outside world's model: integers in, exact sums and differences out. Raises InfaasError when one is wrong."""
    with np.load(family.path(family.SIMPLE_EVAL_FILE), allow_pickle=False) as data:
        arrays = {name: data[name] for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")}
    _warm_simple(client, arrays)
    for number in range(SIMPLE_QUERIES):
        row = [number % len(arrays["INPUT0"])]
        answer = client.infer(SIMPLE_TASK, {name: arrays[name][row] for name in ("INPUT0", "INPUT1")})
        for name in ("OUTPUT0", "OUTPUT1"):
            if not np.array_equal(answer.outputs[name], arrays[name][row]):
                raise InfaasError(f"{SIMPLE_TASK} answered {name} wrongly for row {row[0]}")
    print(f"  {SIMPLE_TASK}: {SIMPLE_QUERIES} of {SIMPLE_QUERIES} answered, every sum and difference exact")


def _warm_simple(client: Client, arrays: dict[str, Array]) -> None:
    deadline = time.monotonic() + WARM_WITHIN_S
    while True:
        try:
            client.infer(SIMPLE_TASK, {name: arrays[name][:1] for name in ("INPUT0", "INPUT1")})
        except QueryError as error:
            if not error.is_retryable or time.monotonic() >= deadline:
                raise
            time.sleep(min(error.retry_after_s or 0.1, 1.0))
        else:
            return


def _explain_one(client: Client, results: Sequence[SetResult]) -> None:
    """The decision of a query that had a real choice, if it is still kept."""
    from infaas.cli.infer import show_decision

    for name in ("tight and good", "high accuracy", "nothing stated"):
        sample = next((one.sample_decision for one in results if one.name == name), None)
        if sample is not None:
            print(f"\nWhy one query of the set {name!r} was served as it was (infaas explain {sample}):\n")
            show_decision(client.decision(sample))
            return


def _store(file: Path, variants: Sequence[VariantDocument], results: Sequence[SetResult]) -> None:
    document = {"task": TASK, "sets": to_plain(list(results)), "variants": to_plain(list(variants))}
    file.write_text(json.dumps(document, indent=1) + "\n")


def _summary(results: Sequence[SetResult], variants: Sequence[VariantDocument], took_s: float, output: Path) -> None:
    meant = [one for one in results if one.on_time_share is not None]
    sent, answered = sum(one.sent for one in results), sum(one.answered for one in results)
    on_time = sum(one.on_time_share * one.sent for one in meant if one.on_time_share is not None)
    served = {name for one in results for name in one.variants}
    latencies = [v.p50_ms for v in variants if v.p50_ms]
    scores = [v.accuracy.value for v in variants if v.accuracy]
    print(
        f"\n{sent} queries, {answered} answered, {len(served)} of {len(variants)} variants served; "
        f"{100 * on_time / max(1, sum(one.sent for one in meant)):.1f}% on time where an answer was possible; "
        f"{sum(one.below_floor for one in results)} answers below a stated floor."
    )
    print(
        f"The variants span {max(latencies) / min(latencies):.0f}x in latency and "
        f"{100 * (max(scores) - min(scores)):.1f} points of accuracy. The demo took {took_s:.0f} s."
    )
    print(f"Picture: {output / 'frontier.svg'}   Results: {output / 'results.json'}")


def _say_next(client: Client, output: Path, *, is_kept: bool) -> None:
    """The URL to try, with a query anyone can send."""
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        image = data[family.INPUT][:1]
    tensor = {"name": family.INPUT, "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    query = output / "query.json"
    query.write_text(json.dumps({"inputs": [tensor]}) + "\n")
    url = f"{client.url}/v2/models/{TASK}/infer"
    print(f"\nNext: {url}" if is_kept else f"\nNext: infaas demo --keep, which leaves the system running; it was {url}")
    print(
        f"  curl -s {url} -H 'Content-Type: application/json' \\\n"
        f"    -H 'x-infaas-slo-latency-ms: 50' -H 'x-infaas-slo-accuracy-min: 0.95' -D - -d @{query}\n"
        f"  infaas infer {TASK} {family.path(family.EVAL_FILE)} --url {client.url} --slo-latency 50 --explain"
    )
