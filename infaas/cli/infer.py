"""`infaas infer` and `infaas explain`: a query with requirements, and why it was served as it was."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infaas.cli.output import Format, Output, Table, did, emit, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect, local_state_dir

if TYPE_CHECKING:
    from infaas.client import Client, Inference, Requirements, Served
    from infaas.domain.query import Decision

SHOWN_VALUES = 12
Ask = Callable[[Mapping[str, Any]], "Inference"]


class Protocol(StrEnum):
    REST = "rest"
    GRPC = "grpc"


def add_to(app: typer.Typer) -> None:
    app.command("infer")(infer)
    app.command("explain")(explain)


def infer(
    handle: Annotated[str, typer.Argument(help="A task, a model or a variant.")],
    file: Annotated[Path | None, typer.Argument(help="Inputs: .npz or .npy (rows) or .json (one query).")] = None,
    input: Annotated[list[str] | None, typer.Option("--input", help="NAME=JSON or NAME=FILE.npy; repeat.")] = None,
    slo_latency: Annotated[float | None, typer.Option(help="Milliseconds until the answer is useless.")] = None,
    slo_accuracy: Annotated[float | None, typer.Option(help="Minimum accuracy, 0 to 1; 0: no floor.")] = None,
    objective: Annotated[str | None, typer.Option(help="cost, accuracy or latency.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="USD per 1,000 queries.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, standard or sheddable.")] = None,
    tenant: Annotated[str | None, typer.Option(help="On whose behalf: tenants share what there is fairly.")] = None,
    fallback: Annotated[bool, typer.Option("--fallback", help="Rather a less accurate answer than none.")] = False,
    version: Annotated[str | None, typer.Option(help="Of the model; default: the one that serves.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many queries, one after another.")] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows per query; default: 1 of a file's.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="How to ask.")] = Protocol.REST,
    grpc_url: Annotated[str | None, typer.Option(help="host:port for --protocol grpc; default: the local one.")] = None,
    show_headers: Annotated[bool, typer.Option("--show-headers", help="Print the answer's headers.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the decision.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Ask for an answer, and say how fast, how accurate and how cheap it must be."""
    from infaas.cli.inputs import read
    from infaas.client import QueryError, Requirements

    requirements = Requirements(
        slo_latency, slo_accuracy, max_cost, objective, priority, True if fallback else None, explain, tenant
    )
    with connect(url, token_file) as client:
        data = read(file, input or (), client.metadata(handle)["inputs"])
        rows = batch or (1 if data.is_table else data.rows)
        ask, close = _asker(client, protocol, grpc_url, url, token_file, handle, version, requirements)
        try:
            if count > 1:
                _many(ask, [data.query(at, rows) for at in range(count)], output)
                return
            begin = time.perf_counter()
            answer = ask(data.query(0, rows))
            took_ms = 1000 * (time.perf_counter() - begin)
        except QueryError as error:
            _print_headers(error.headers, show_headers, output)
            if error.served.decision_id:
                next_step(f"infaas explain {error.served.decision_id}", Format.JSON)
            raise
        finally:
            close()
        emit(_plain(answer, took_ms), output, lambda: _show_outputs(answer))
        _print_headers(answer.headers, show_headers, output)
        did(_how(answer.served, answer.version, took_ms), output)
        key = answer.served.decision_id or answer.served.request_id
        if explain and key and output is Format.TABLE:
            show_decision(client.decision(key))
        next_step(f"infaas explain {key}", output)


def explain(
    key: Annotated[str, typer.Argument(help="A decision id or a request id.")],
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Why a query was served as it was, or refused: every variant that was looked at, with the reason."""
    with connect(url, token_file) as client:
        decision = client.decision(key)
    emit(decision, output, lambda: show_decision(decision))
    subject = f"infaas variant describe {decision.variant}" if decision.variant else "infaas variant list"
    next_step(subject, output)


def show_decision(decision: Decision) -> None:
    table = Table("FIELD", "VALUE")
    asked = "; ".join(f"{key} {value}" for key, value in decision.requirements.items() if value not in (None, False))
    table.add("decision", f"{decision.id} (request {decision.request_id}) at {decision.at}")
    if decision.trace_id:
        table.add("trace", decision.trace_id)
    table.add("asked for", f"{decision.level.value if decision.level else 'unknown'} {decision.handle}")
    table.add("requirements", asked or "none stated")
    table.add("accuracy floor", percent(decision.floor))
    table.add("policy", decision.policy)
    table.add("outcome", f"{decision.outcome}: {decision.reason}" if decision.reason else decision.outcome)
    if decision.variant:
        table.add("served by", f"{decision.variant} on {decision.worker or '-'}")
        table.add("predicted", f"{number(decision.predicted_ms)} ms")
        table.add("observed", f"{number(decision.observed_ms)} ms, {number(decision.queue_ms)} ms of it queued")
        table.add("on time", {True: "yes", False: "no", None: "no objective"}[decision.slo_met])
        table.add("batch, attempts", f"{decision.batch or '-'}, {decision.attempts}")
    if decision.alike:
        table.add("alike", f"{decision.alike} more ended so in that moment")
    if decision.cold_start:
        table.add("cold start", "yes")
    if decision.fallback:
        table.add("fallback", decision.fallback)
    show(table)
    if not decision.candidates:
        if decision.candidates_left_out:
            typer.echo(
                f"{decision.candidates_left_out} candidates were looked at; the journal was too busy to keep them"
            )
        return
    candidates = Table("", "CANDIDATE", ">PREDICTED MS", ">ACCURACY", ">USD/1K", "LOADED", "REASON")
    # The chosen one first, then what could have been chosen, then the rest in the order it was looked at.
    order = {"chosen": 0, "eligible": 1, "admitted": 1}
    for one in sorted(decision.candidates, key=lambda c: order.get(c.reason.split(":")[0].split(" ")[0], 2)):
        declared = " declared" if one.accuracy_source == "declared" else ""
        is_chosen = one.variant == decision.variant
        candidates.add(
            "→" if is_chosen else "",
            one.variant,
            number(None if one.predicted_s is None else 1000 * one.predicted_s),
            percent(one.accuracy) + declared,
            number(one.cost_usd_per_1k),
            {True: "yes", False: "no", None: "-"}[one.is_loaded],
            one.reason,
            style="bold" if is_chosen else None,
        )
    show(candidates)
    if decision.candidates_left_out:
        typer.echo(f"{decision.candidates_left_out} more candidates were looked at and are not kept")


def _asker(
    client: Client,
    protocol: Protocol,
    grpc_url: str | None,
    url: str | None,
    token_file: Path | None,
    handle: str,
    version: str | None,
    requirements: Requirements,
) -> tuple[Ask, Callable[[], None]]:
    """How one query is sent, and how to clean up after the last."""
    if protocol is Protocol.REST:
        return (lambda arrays: client.infer(handle, arrays, requirements, version=version)), lambda: None
    from infaas.cli.target import endpoints_of, read_token
    from infaas.client_grpc import GrpcClient
    from infaas.errors import InvalidError

    token = read_token(token_file)
    if grpc_url is None and url is None:
        from infaas.settings import load_settings

        endpoints = endpoints_of(local_state_dir(None))
        grpc_url = endpoints.grpc if endpoints else "127.0.0.1:8001"
        token = token or load_settings().token()
    if grpc_url is None:
        raise InvalidError("--protocol grpc with --url needs --grpc-url host:port too")
    stub = GrpcClient(grpc_url, token)
    return (lambda arrays: stub.infer(handle, arrays, requirements, version=version)), stub.close


def _many(ask: Ask, queries: list[dict[str, Any]], output: Format) -> None:
    """One after another, then a summary. Raises the last error when none was answered."""
    from infaas.client import QueryError

    latencies: list[float] = []
    variants: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    late, last = 0, None
    for arrays in queries:
        begin = time.perf_counter()
        try:
            answer = ask(arrays)
        except QueryError as error:
            errors[error.code.value] += 1
            last = error
            continue
        latencies.append(1000 * (time.perf_counter() - begin))
        variants[answer.served.variant or "unknown"] += 1
        late += answer.served.slo_met is False
    if not latencies and last is not None:
        raise last
    latencies.sort()
    p50, p95 = (latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.95))
    summary = {
        "queries": len(queries),
        "answered": len(latencies),
        "late": late,
        "errors": dict(errors),
        "variants": dict(variants.most_common()),
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
    }
    table = Table("FIELD", "VALUE")
    for key, value in summary.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add(key.replace("_", " "), text or "-")
    emit(summary, output, lambda: show(table))
    did(f"Sent {len(queries)} queries, {len(latencies)} answered.", output)
    next_step("infaas variant list", output)
    if errors:
        raise typer.Exit(1)


def _show_outputs(answer: Inference) -> None:
    table = Table("OUTPUT", "DATATYPE", "SHAPE", "VALUES")
    for name, array in answer.outputs.items():
        values = array.ravel()[:SHOWN_VALUES].tolist()
        texts = [f"{value:.6g}" if isinstance(value, float) else _text(value) for value in values]
        more = " ..." if array.size > SHOWN_VALUES else ""
        table.add(name, str(array.dtype), str(list(array.shape)), " ".join(texts) + more)
    show(table)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plain(answer: Inference, took_ms: float) -> dict[str, Any]:
    from infaas.client_tensors import datatype_of, to_json

    outputs = [
        {
            "name": name,
            "datatype": datatype_of(array).value,
            "shape": list(array.shape),
            "data": to_json(array),
        }
        for name, array in answer.outputs.items()
    ]
    return {
        "model": answer.model,
        "version": answer.version,
        "outputs": outputs,
        "served": answer.served,
        "latency_ms": round(took_ms, 3),
    }


def _print_headers(headers: Mapping[str, str], is_wanted: bool, output: Format) -> None:
    if not is_wanted:
        return
    for name, value in sorted(headers.items()):
        typer.echo(f"{name}: {value}", err=output is not Format.TABLE)


def _how(served: Served, version: str | None, took_ms: float) -> str:
    words = [f"Served by {served.variant or 'an unnamed variant'}"]
    words.append(f"(version {version}) on {served.worker or '-'} in {took_ms:.1f} ms")
    if served.slo_met is not None:
        words.append("on time" if served.slo_met else "LATE")
    if served.cold_start:
        words.append("after a cold start")
    if served.fallback:
        words.append(f"as a fallback: {served.fallback}")
    return " ".join(words) + "."
