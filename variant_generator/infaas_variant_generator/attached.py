"""Profiles a model on a Triton server from outside: what it costs a caller to ask it, over the wire.

A process of its own, like the other measurements, but it borrows no cores: the model runs elsewhere. Batches are sent
by the code that workers send them with. What is measured is therefore the whole way, and under whatever load others
put on that server at the time; nothing is verified against an original, because the server's model is the original.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from infaas.clock import iso
from infaas.domain.tensor import TensorSpec
from infaas.domain.variant import Accuracy
from infaas.errors import InvalidError, ModelError
from infaas.triton.call import Caller
from infaas.triton.facts import changes
from infaas.triton.reference import Reference, client_bytes, read_reference
from infaas.triton.server import TritonServer
from infaas.triton.tensors import Raw
from infaas_variant_generator import rounds
from infaas_variant_generator.accuracy import score
from infaas_variant_generator.arrays import Arrays, Rows, load_rows, to_array, to_bytes
from infaas_variant_generator.attaching import AttachedRequest
from infaas_variant_generator.child import Channel, serve
from infaas_variant_generator.fit import Measurement, Samples, fit_profile
from infaas_variant_generator.plan import LONG_BATCH_RUN_S, batch_limit_reason, batch_sizes
from infaas_variant_generator.requests import Measured

ANSWER_S = 60.0
INPUT_SEED = 7
LOAD_REPEATS = 3
_NO_LIMIT = 1 << 62
"""Of memory: the model's is its server's affair."""


class AttachedProfiler:
    """One measurement, from the first call to the score."""

    def __init__(self, request: AttachedRequest, channel: Channel) -> None:
        self._request = request
        self._channel = channel
        self._reference = read_reference(Path(request.reference))
        self._notes: list[str] = []

    def run(self) -> Measured:
        """Leaves the model loaded: others may have begun to use it meanwhile. It is unloaded only from a server that is
        nobody else's, and only if it was not loaded before. Raises InfaasError when it cannot be asked."""
        reference = self._reference
        server = TritonServer(self._request.url or reference.url)
        try:
            began = time.perf_counter()
            server.require_live()
            is_ours = server.ensure_loaded(reference.model, reference.version)
            cold_s = time.perf_counter() - began
            try:
                return self._measured(server, cold_s)
            finally:
                if is_ours and self._request.is_private:
                    server.unload(reference.model)
        finally:
            server.close()

    def _measured(self, server: TritonServer, cold_s: float) -> Measured:
        request, reference = self._request, self._reference
        facts = server.facts(reference.model, reference.version)
        if changed := changes(reference, facts):
            raise InvalidError(f"model {reference.model!r} is not what was attached: {'; '.join(changed)}")
        rows = load_rows(
            request.inputs,
            Path(request.evaluation) if request.evaluation else None,
            Path(request.calibration) if request.calibration else None,
            INPUT_SEED,
        )
        asker = _Asker(Caller(f"model {reference.model!r}", reference, server), request.inputs, request.outputs, rows)
        sizes = _sizes(reference)
        batches = self._allowed(asker, sizes)
        self._channel.send("stage", stage="scoring", fraction=0.2)
        accuracy = self._score(asker, rows, batches[-1])
        warm_s = self._warm_load_s(server)
        samples, spoiled = self._rounds(asker, batches)
        _write(samples, Path(request.samples))
        memory = client_bytes(request.inputs, request.outputs, reference)
        price = reference.price_usd_per_hour
        profile = fit_profile(
            Measurement(samples, max(cold_s, warm_s), warm_s, memory, memory, spoiled),
            threads=1,
            price_usd_per_core_hour=request.price_usd_per_core_hour if price is None else price,
            budget_s=request.budget_s,
            measured_at=iso(time.time()),
            host=request.host,
        )
        return Measured(None, replace(profile, accuracy=accuracy), batches[-1], tuple(self._notes))

    def _allowed(self, asker: _Asker, sizes: Sequence[int]) -> tuple[int, ...]:
        """Every batch size, ascending, up to the one that takes too long or that the model refuses."""
        allowed: list[int] = []
        best_item_s: float | None = None
        for batch in sizes:
            try:
                asker.timed(batch)
                run_s = asker.timed(batch)
                if run_s > LONG_BATCH_RUN_S:
                    run_s = min(run_s, asker.timed(batch), asker.timed(batch))
            except (ModelError, InvalidError) as error:
                if not allowed:
                    raise
                self._notes.append(f"batch limit {allowed[-1]} instead of {sizes[-1]}: {error.text}")
                break
            reason = batch_limit_reason(batch, run_s, best_item_s, 0, _NO_LIMIT)
            if reason is not None and allowed:
                self._notes.append(f"batch limit {allowed[-1]} instead of {sizes[-1]}: {reason}")
                break
            allowed.append(batch)
            best_item_s = min(run_s / batch, best_item_s or run_s / batch)
        return tuple(allowed)

    def _score(self, asker: _Asker, rows: Rows, batch: int) -> Accuracy | None:
        if rows.is_random or not rows.answers:
            return None
        return score(asker.answers(batch), rows, self._request.metric)

    def _warm_load_s(self, server: TritonServer) -> float:
        """What a worker does to load a model that is loaded already: look whether it is what it was."""
        reference = self._reference
        taken = []
        for _ in range(LOAD_REPEATS):
            began = time.perf_counter()
            server.require_live()
            server.ensure_loaded(reference.model, reference.version)
            server.facts(reference.model, reference.version)
            taken.append(time.perf_counter() - began)
        return median(taken)

    def _rounds(self, asker: _Asker, batches: Sequence[int]) -> tuple[Samples, int]:
        budget_s = self._request.budget_s
        tallies = {batch: rounds.Tally() for batch in batches}
        usual = dict.fromkeys(batches, 0.0)
        log: list[tuple[int, bool, list[float]]] = []
        while not rounds.is_enough(tallies, budget_s):
            batch = rounds.next_batch(tallies)
            count = rounds.round_runs(usual[batch]) if usual[batch] > 0 else 1
            runs_s = [asker.timed(batch) for _ in range(count)]
            # The caller waits for the wire, so its processor time says nothing: only gaps tell a stall.
            is_spoiled = rounds.why_spoiled(runs_s, usual[batch], None) is not None
            tallies[batch] = rounds.with_round(tallies[batch], runs_s, is_spoiled=is_spoiled)
            usual[batch] = min(median(runs_s), usual[batch] or median(runs_s))
            log.append((batch, is_spoiled, runs_s))
            self._channel.send("stage", stage="profiling", fraction=0.3 + 0.7 * rounds.progress(tallies, budget_s))
        return _samples(log), sum(tally.spoiled_rounds for tally in tallies.values())


class _Asker:
    """Sends rows as a worker does: single queries' bytes, joined, and the answers' bytes."""

    def __init__(self, caller: Caller, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: Rows) -> None:
        self._caller = caller
        self._inputs = inputs
        self._outputs = outputs
        self._rows = rows
        self._at = 0

    def timed(self, batch: int) -> float:
        chosen = np.arange(self._at, self._at + batch) % self._rows.count
        self._at = (self._at + batch) % self._rows.count
        feed = self._feed(chosen)
        began = time.perf_counter()
        self._ask(feed, batch)
        return time.perf_counter() - began

    def answers(self, batch: int) -> Arrays:
        parts: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = {s.name: [] for s in self._outputs}
        for begin in range(0, self._rows.count, batch):
            chosen = np.arange(begin, min(begin + batch, self._rows.count))
            for spec, raw in zip(self._outputs, self._ask(self._feed(chosen), len(chosen)), strict=True):
                parts[spec.name].append(to_array(raw.data, spec.datatype, raw.shape))
        return {name: _plain(np.concatenate(arrays)) for name, arrays in parts.items()}

    def _feed(self, chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[str, Raw]:
        arrays = {spec.name: self._rows.inputs[spec.name][chosen] for spec in self._inputs}
        return {name: Raw(tuple(array.shape), to_bytes(array)) for name, array in arrays.items()}

    def _ask(self, feed: dict[str, Raw], items: int) -> list[Raw]:
        return self._caller.run(feed, items, [spec.name for spec in self._outputs], ANSWER_S, None)


def _sizes(reference: Reference) -> tuple[int, ...]:
    if reference.fixed_batch is not None:
        return (reference.fixed_batch,)
    return batch_sizes(reference.max_batch_size, None)


def _plain(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Texts as texts: an evaluation set holds no bytes objects."""
    if array.dtype.kind != "O":
        return array
    texts = [element.decode(errors="replace") for element in array.reshape(-1).tolist()]
    return np.array(texts, dtype=np.str_).reshape(array.shape)


def _samples(log: Sequence[tuple[int, bool, list[float]]]) -> Samples:
    counts = [len(runs_s) for _, _, runs_s in log]
    seconds = np.array([value for _, _, runs_s in log for value in runs_s], dtype=np.float64)
    return Samples(
        batch=np.repeat(np.array([batch for batch, _, _ in log], dtype=np.int64), counts),
        round=np.repeat(np.arange(len(log), dtype=np.int64), counts),
        seconds=seconds,
        is_spoiled=np.repeat(np.array([is_spoiled for _, is_spoiled, _ in log], dtype=np.bool_), counts),
        is_slow=np.zeros(seconds.shape, dtype=np.bool_),
        own_seconds=np.full(seconds.shape, np.inf),
    )


def _write(samples: Samples, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            batch=samples.batch,
            round=samples.round,
            seconds=samples.seconds,
            is_spoiled=samples.is_spoiled,
            own_seconds=samples.own_seconds,
        )


def _work(request: AttachedRequest, channel: Channel) -> Measured:
    return AttachedProfiler(request, channel).run()


if __name__ == "__main__":
    serve(AttachedRequest, _work)
