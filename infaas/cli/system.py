"""`infaas up | down | status | doctor | demo`: a whole system on this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infaas.cli.output import Format, Output, Table, did, emit, memory, next_step, show
from infaas.cli.target import ConfigFile, StateDir, TokenFile, Url, connect, endpoints_of, local_state_dir

if TYPE_CHECKING:
    from infaas.up.record import UpRecord

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free port.")]


def add_to(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("doctor")(doctor)
    app.command("demo")(demo)


def up(
    state_dir: StateDir = None,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; beyond loopback a token is needed.")] = None,
    http_port: Port = None,
    grpc_port: Port = None,
    metrics_port: Port = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes of the controller, which share its ports.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Workers of the pool 'local'.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the programs' logs.")] = False,
) -> None:
    """Start a whole system on this machine and keep it running until Ctrl-C."""
    env = up_environ(
        state_dir=state_dir,
        config=config,
        controller={
            "host": host,
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
            "processes": processes,
        },
        workers=workers,
    )
    if not detach:
        from infaas.up.detached import supervisor_argv

        argv = supervisor_argv(is_verbose=verbose)
        # The supervisor lives as long as the system: it gets a process without the command line's libraries.
        sys.stdout.flush()
        os.execve(argv[0], argv, env)
    from infaas.settings import load_settings
    from infaas.up.detached import start_detached

    folder = load_settings(environ=env).state_dir.absolute()
    record = start_detached(folder, env)
    endpoints = endpoints_of(folder)
    did(f"infaas is up in the background (pid {record.pid}), ready after {record.ready_after_s} s.")
    if endpoints is not None:
        did(f"  REST     {endpoints.url}\n  gRPC     {endpoints.grpc}\n  metrics  {endpoints.metrics_url}")
    next_step(f"infaas status{_flag(state_dir)}")


def up_environ(
    *, state_dir: Path | None, config: Path | None, controller: dict[str, Any], workers: int | None
) -> dict[str, str]:
    """The environment in which a supervisor sees the flags as settings."""
    from infaas.up.plan import overrides_environ

    overrides: dict[str, Any] = {"controller": {key: value for key, value in controller.items() if value is not None}}
    if state_dir is not None:
        overrides["state_dir"] = str(state_dir.absolute())
    if workers is not None:
        overrides["pools"] = {"local": {"workers": workers}}
    env = {**os.environ, **overrides_environ(overrides)}
    if config is not None:
        env["INFAAS_CONFIG"] = str(config.absolute())
    return env


def down(
    state_dir: StateDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for running queries.")] = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for running queries.")] = False,
) -> None:
    """Stop the local system; queries that are running are finished."""
    from infaas.up.detached import stop

    folder = local_state_dir(state_dir)
    record = stop(folder, timeout_s=timeout, is_forced=force)
    did(f"infaas (pid {record.pid}) is down; its state stays in {folder}.")
    next_step(f"infaas up{_flag(state_dir)}")


def status(
    state_dir: StateDir = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second until Ctrl-C.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """What runs on this machine and how it fares. Exit status 0 when it is ready."""
    from infaas.up.record import is_up, read_up

    folder = local_state_dir(state_dir)
    while True:
        record = read_up(folder)
        is_ready = _show_status(folder, record, output)
        if not watch:
            break
        time.sleep(1.0)
    if record is None or not is_up(record):
        next_step(f"infaas up{_flag(state_dir)}", output)
        raise typer.Exit(1)
    next_step("infaas variant list" if is_ready else "infaas doctor", output)
    if not is_ready:
        raise typer.Exit(1)


def doctor(state_dir: StateDir = None, config: ConfigFile = None, output: Output = Format.TABLE) -> None:
    """Check what a system needs on this machine, and the one that runs; every finding comes with its remedy."""
    from infaas.up.doctor import Verdict, examine

    findings = examine(config, state_dir)
    table = Table("", "CHECK", "FOUND", "WHAT TO DO")
    marks = {Verdict.OK: "ok", Verdict.WARN: "WARN", Verdict.FAIL: "FAIL"}
    styles = {Verdict.OK: None, Verdict.WARN: "yellow", Verdict.FAIL: "red"}
    for one in findings:
        table.add(marks[one.verdict], one.check, one.found, one.remedy or "", style=styles[one.verdict])
    emit({"findings": findings}, output, lambda: show(table))
    failed = sum(one.verdict is Verdict.FAIL for one in findings)
    warned = sum(one.verdict is Verdict.WARN for one in findings)
    did(f"{len(findings)} checks: {failed} failed, {warned} warnings.", output)
    next_step("mend what FAILED, then infaas doctor" if failed else "infaas up", output)
    if failed:
        raise typer.Exit(1)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running afterwards.")] = False,
    output_dir: Annotated[Path, typer.Option("--output", help="Where picture and results go.")] = Path("demo-output"),
    queries: Annotated[int, typer.Option(min=100, help="How many queries to send in all.")] = 3000,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Register a family of models, send real queries under many requirements, and show what served them."""
    from infaas.demo.run import run

    if url is None:
        run(output_dir, queries=queries, is_kept=keep)
        return
    with connect(url, token_file) as client:
        run(output_dir, queries=queries, is_kept=True, running=client)


def _show_status(folder: Path, record: UpRecord | None, output: Format) -> bool:
    from infaas.up import health, memory
    from infaas.up.record import is_alive, is_up

    endpoints = endpoints_of(folder)
    is_running = is_up(record)
    is_ready = endpoints is not None and health.is_ready(endpoints)
    programs = []
    for one in record.programs if record else ():
        is_there = is_alive(one.pid, one.start_ticks)
        state = one.state if is_running else ("orphaned" if is_there else "stopped")
        pss = memory.pss_bytes(one.pid) if one.pid is not None and is_there else None
        programs.append(
            {
                "program": one.name,
                "state": state,
                "pid": one.pid if is_there else None,
                "memory_bytes": pss,
                "restarts": one.restarts,
                "last_exit": one.last_exit,
                "next_try_in_s": None if one.next_try_at is None else round(max(0.0, one.next_try_at - time.time()), 1),
                "log": one.log,
            }
        )
    state = record.state if is_running and record else "down"
    parts = health.parts(endpoints, _token()) if endpoints is not None and is_running else None
    document = {
        "state": state,
        "ready": is_ready,
        "state_dir": str(folder),
        "pid": record.pid if is_running and record else None,
        "supervisor_memory_bytes": memory.pss_bytes(record.pid) if is_running and record else None,
        "url": endpoints.url if endpoints else None,
        "grpc": endpoints.grpc if endpoints else None,
        "metrics": endpoints.metrics_url if endpoints else None,
        "parts": parts,
        "programs": programs,
    }
    emit(document, output, lambda: _draw_status(document))
    return is_ready


def _draw_status(document: dict[str, Any]) -> None:
    ready = "ready" if document["ready"] else "not ready"
    typer.echo(f"infaas is {document['state']} ({ready}); state in {document['state_dir']}")
    if document["url"]:
        typer.echo(f"  REST {document['url']}   gRPC {document['grpc']}   metrics {document['metrics']}")
    for line in _part_lines(document["parts"]):
        typer.echo(line)
    table = Table("PROGRAM", "STATE", ">PID", ">MEMORY", ">RESTARTS", "LAST EXIT", ">NEXT TRY", "LOG")
    for one in document["programs"]:
        again = "-" if one["next_try_in_s"] is None else f"in {one['next_try_in_s']} s"
        is_bad = one["state"] in ("crash-loop", "backing-off", "orphaned")
        table.add(
            one["program"],
            one["state"],
            one["pid"],
            memory(one["memory_bytes"]),
            one["restarts"],
            one["last_exit"],
            again,
            one["log"],
            style="red" if is_bad else None,
        )
    if document["programs"]:
        show(table)


def _part_lines(parts: Mapping[str, Any] | None) -> list[str]:
    """What the controller depends on, in words; nothing when it does not answer."""
    if parts is None:
        return []
    lines = []
    for name in ("store", "catalogue"):
        part = parts[name]
        seen = "" if part["age_s"] is None else f", heard of {part['age_s']:.1f} s ago"
        why = f": {part['reason']}" if part["reason"] else ""
        lines.append(f"  {name:<9} {part['state']}{seen}{why}")
    if parts["journal_waiting"] or parts["journal_dropped"]:
        lines.append(f"  journal   {parts['journal_waiting']} decisions wait, {parts['journal_dropped']} were dropped")
    lines.append(f"  workers   {parts['workers_connected']} of {parts['workers']} connected")
    processes = parts.get("processes", [])
    return lines if len(processes) < 2 else [*lines, *map(_process_line, processes)]


def _process_line(process: Mapping[str, Any]) -> str:
    from infaas.up.memory import pss_bytes

    ready = "" if process["is_ready"] else ", not ready"
    leads = ", leads" if process["is_leader"] else ""
    again = f", started again {process['restarts']} times" if process["restarts"] else ""
    return (
        f"  process {process['number']} {process['state']}{ready}{leads}: pid {process['pid']}, "
        f"{memory(pss_bytes(process['pid']))}, {process['in_flight']} queries{again}"
    )


def _token() -> str | None:
    """What the local system's own settings say; without it only the parts are not shown."""
    from infaas.cli.target import read_token
    from infaas.settings import load_settings

    return read_token(None) or load_settings().token()


def _flag(state_dir: Path | None) -> str:
    return f" --state-dir {state_dir}" if state_dir else ""
