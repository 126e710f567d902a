"""INFaaS as it is shipped: `infaas up` on one core, with one model that serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from own_system import BUILT_WITHIN_S, own_state, register

from dataplane.graphs import Prepared
from dataplane.servers import INFAAS, Pins, Server
from infaas.cli.target import endpoints_of
from infaas.client import Client
from infaas.demo import family
from infaas.up.record import read_up

_LOOK_EVERY_S = 0.2


@contextmanager
def own(prepared: Prepared, pins: Pins, *, budget_s: float, has_crowd: bool) -> Iterator[Server]:
    """A task named like the model, served by its fp32 variant of one thread: what the peers run. The others are
    disabled, so that ratios compare systems and not precisions. `has_crowd`: the demo's family is registered too."""
    with ExitStack() as stack:
        with pins.for_server():  # only what is started: the load comes from this very process
            client, state_dir = stack.enter_context(own_state(budget_s=budget_s))
        if has_crowd:
            register(client, [model.name for model in family.FAMILY])
        variant = _registered(client, prepared)
        endpoints, record = endpoints_of(state_dir), read_up(state_dir)
        if endpoints is None or record is None:
            raise SystemExit("the private system is gone")
        address = (endpoints.host, endpoints.http_port)
        grpc = (endpoints.host, endpoints.grpc_port)
        roots = {"supervisor": record.pid, **{one.name: one.pid for one in record.programs if one.pid is not None}}
        yield Server(INFAAS, address, roots, grpc=grpc, serves=variant)


def _registered(client: Client, prepared: Prepared) -> str:
    """The one variant that stays. Raises SystemExit when the model cannot be built."""
    name = prepared.model.name
    made = client.register(prepared.file, task=name, name=f"{name}-net", evaluation=prepared.evaluation)
    deadline = time.monotonic() + BUILT_WITHIN_S
    while (version := client.version(f"{name}-net", made.version)).state != "READY":
        if version.state == "FAILED" or time.monotonic() > deadline:
            raise SystemExit(f"{name} is {version.state}: {version}")
        time.sleep(_LOOK_EVERY_S)
    variants = client.variants(task=name)
    kept = [one.name for one in variants if one.precision == "fp32" and one.threads == 1]
    if len(kept) != 1:
        raise SystemExit(f"{name} has no single fp32 variant of one thread: {[one.name for one in variants]}")
    for one in variants:
        if one.name not in kept:
            client.disable_variant(one.name)
    while client.variant(kept[0]).replicas < 1:
        if time.monotonic() > deadline:
            raise SystemExit(f"{kept[0]} is not loaded: {client.variant(kept[0])}")
        time.sleep(_LOOK_EVERY_S)
    return kept[0]
