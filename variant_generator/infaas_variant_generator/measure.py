"""Measures one variant in a process of its own: load time, memory, and latency by batch size.

What is timed is what a worker does with a batch: take each query's bytes, gather them, run, split the outputs, give
bytes. Cores are asked for before every slice of work and given back after it, so that profiling never holds the cores
of a serving worker for longer than one slice. The parent turns the result into a published profile.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from infaas.clock import iso
from infaas.runtimes.onnxruntime_options import open_session
from infaas_variant_generator import rounds
from infaas_variant_generator.arrays import load_rows
from infaas_variant_generator.child import Channel, serve
from infaas_variant_generator.fit import Measurement, Samples, fit_profile
from infaas_variant_generator.memory import Memory
from infaas_variant_generator.pace import Reference
from infaas_variant_generator.plan import LONG_BATCH_RUN_S, MIN_SPLIT_RUN_S, batch_limit_reason, why_not_split
from infaas_variant_generator.requests import Measured, MeasureRequest
from infaas_variant_generator.round_log import Round, RoundLog
from infaas_variant_generator.runner import Runner

SLICE_S = 0.25
LOAD_SLICE_S = 1.0
"""Loading cannot be cut into slices; cores are given back as soon as it is done."""
LOAD_REPEATS = 3
LOAD_BUDGET_S = 1.0
SPLIT_BURSTS = 3
INPUT_SEED = 7


class Profiler:
    """One measurement, from the first load to the last round."""

    def __init__(self, request: MeasureRequest, channel: Channel) -> None:
        self._request = request
        self._channel = channel
        self._notes: list[str] = []
        self._reference = Reference(request.threads)
        self._seen_reference_s: float | None = None
        self._lent: tuple[int, ...] = ()
        self._places: dict[int, int] = {}
        """Of the threads of ONNX Runtime's pools: which of the lent cores each has."""

    def close(self) -> None:
        self._reference.close()

    def run(self) -> Measured:
        request = self._request
        rows = load_rows(
            request.inputs,
            Path(request.evaluation) if request.evaluation else None,
            Path(request.calibration) if request.calibration else None,
            INPUT_SEED,
        )
        feed = Runner.prepare(rows, request.inputs)
        if request.warmup_graph:
            open_session(request.warmup_graph, 1).run(None, {"x": np.zeros(1, dtype=np.float32)})
        if request.threads > 1 and not request.is_wanted and (reason := self._why_not_split(feed)):
            return Measured(reason, None, request.batches[-1], tuple(self._notes))
        memory = Memory.start()
        cold_s, runner = self._load(feed, is_cold=True)
        batches, resident, peak = self._allowed_batches(runner, memory)
        loads = self._more_loads(feed)
        samples, tallies = self._rounds(runner, batches)
        self._write_samples(samples)
        measured = Measurement(
            samples=samples,
            cold_load_s=median([cold_s, *loads[0]]),
            warm_load_s=median(loads[1]),
            peak_memory_bytes=max(peak, resident, os.path.getsize(request.graph)),
            resident_memory_bytes=max(resident, os.path.getsize(request.graph)),
            stalled_rounds=sum(tally.spoiled_rounds for tally in tallies.values()),
        )
        profile = fit_profile(
            measured,
            threads=request.threads,
            price_usd_per_core_hour=request.price_usd_per_core_hour,
            budget_s=request.budget_s,
            measured_at=iso(time.time()),
            host=request.host,
        )
        return Measured(None, profile, batches[-1], tuple(self._notes), self._seen_reference_s)

    # cores

    @contextlib.contextmanager
    def _slice(self, expected_s: float = SLICE_S) -> Iterator[None]:
        """Hold as many cores as the variant has threads for the block: ask, pin to them, give them back."""
        reply = self._channel.ask("cores", count=self._request.threads, max_s=max(SLICE_S, expected_s))
        lent = tuple(int(core) for core in reply["cores"])
        if note := reply.get("note"):
            self._note(str(note))
        self._pin(lent)
        try:
            yield
        finally:
            self._channel.send("release")

    def _pin(self, cores: tuple[int, ...]) -> None:
        """Each thread that runs the graph to a core of its own: left to the kernel, two threads of a pool sometimes
        share one core for seconds, and then the profile is of another variant. Other threads may use all of them."""
        if not cores or cores == self._lent:
            return
        self._lent = cores
        for name in os.listdir("/proc/self/task"):
            thread = int(name)
            place = 0 if thread == os.getpid() else self._places.get(thread)
            own = cores if place is None else (cores[place % len(cores)],)
            try:
                os.sched_setaffinity(thread, own)
            except ProcessLookupError:
                continue  # it ended in this moment
            except OSError as error:
                self._note(f"could not be pinned to cores {list(cores)}: {error.strerror}")
                return

    def _open(self, threads: int) -> Any:
        """A session whose pool's threads are pinned like this one: they are made here, and inherit its core."""
        before = set(os.listdir("/proc/self/task"))
        session = open_session(self._request.graph, threads)
        made = sorted(int(name) for name in set(os.listdir("/proc/self/task")) - before)
        self._places |= {thread: place for place, thread in enumerate(made, start=1)}
        lent, self._lent = self._lent, ()
        self._pin(lent)
        return session

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    # loading and memory

    def _load(self, feed: Runner, *, is_cold: bool) -> tuple[float, Runner]:
        """Open a session and run the smallest batch once; the seconds that took."""
        if is_cold:
            _drop_from_cache(self._request.graph)
        with self._slice(LOAD_SLICE_S):
            begin = time.perf_counter()
            runner = feed.with_session(self._open(self._request.threads))
            runner.run(self._request.batches[0])
            return time.perf_counter() - begin, runner

    def _more_loads(self, feed: Runner) -> tuple[list[float], list[float]]:
        """Further cold loads, and warm ones (at least one), within a bound of time."""
        cold: list[float] = []
        warm = [self._load(feed, is_cold=False)[0]]
        while len(warm) < LOAD_REPEATS and sum(cold) + sum(warm) < LOAD_BUDGET_S:
            cold.append(self._load(feed, is_cold=True)[0])
            warm.append(self._load(feed, is_cold=False)[0])
        return cold, warm

    def _allowed_batches(self, runner: Runner, memory: Memory) -> tuple[tuple[int, ...], int, int]:
        """Run every batch size, ascending, up to the one that takes too long or too much memory; the sizes that do
        not, and the resident and peak memory at the largest of them."""
        allowed: list[int] = []
        resident = peak = 0
        best_item_s: float | None = None
        for batch in self._request.batches:
            with self._slice(LOAD_SLICE_S):
                runner.run(batch)
                run_s = runner.timed(batch)
                if run_s > LONG_BATCH_RUN_S:  # a limit must not come from one disturbed run
                    run_s = min(run_s, runner.timed(batch), runner.timed(batch))
            most = memory.peak_bytes()
            reason = batch_limit_reason(batch, run_s, best_item_s, most, self._request.hardware_memory_bytes)
            if reason is not None and allowed:
                self._note(f"batch limit {allowed[-1]} instead of {self._request.batches[-1]}: {reason}")
                break
            allowed.append(batch)
            resident, peak = memory.grown_bytes(), most
            best_item_s = min(run_s / batch, best_item_s or run_s / batch)
            if reason is not None:
                self._note(f"kept although {reason}: there is no smaller batch")
                break
        return tuple(allowed), resident, peak

    # threads

    def _why_not_split(self, feed: Runner) -> str | None:
        """Look at ever larger batches on one thread until one runs long enough to be worth splitting."""
        request = self._request
        with self._slice():
            runner = feed.with_session(self._open(1))
        run_s = 0.0
        for batch in request.batches:
            with self._slice():
                run_s = _typical_s(runner, batch)
            if run_s >= MIN_SPLIT_RUN_S:
                return None
        return why_not_split(run_s, request.batches[-1], request.threads)

    # latency

    def _rounds(self, runner: Runner, batches: tuple[int, ...]) -> tuple[Samples, dict[int, rounds.Tally]]:
        budget_s = self._request.budget_s
        usual = dict.fromkeys(batches, 0.0)
        log = RoundLog(batches, self._request.best_reference_s)
        # What several threads take depends on where the host has put their processors, which may stay so for minutes:
        # however alike the rounds are, the budget is used up.
        may_end_early = self._request.threads == 1
        with _without_garbage_collection():
            while not rounds.is_enough(log.tallies, budget_s, may_end_early=may_end_early):
                expected_s = 1.5 * usual[rounds.next_batch(log.tallies)]
                with self._slice(expected_s):
                    until = time.perf_counter() + SLICE_S
                    reference = self._paced()
                    while time.perf_counter() < until and not rounds.is_enough(
                        log.tallies, budget_s, may_end_early=may_end_early
                    ):
                        batch = rounds.next_batch(log.tallies)
                        if log.rounds and usual[batch] > until - time.perf_counter() and usual[batch] < SLICE_S:
                            break
                        runs_s, own_s = self._round(runner, batch, usual[batch])
                        absent_s = sum(runs_s) - sum(own_s) if self._request.threads == 1 else None
                        is_spoiled = rounds.why_spoiled(runs_s, usual[batch], absent_s) is not None
                        usual[batch] = min(median(runs_s), usual[batch] or median(runs_s))
                        before, reference = reference, self._paced()
                        log.add(Round(batch, is_spoiled, max(before, reference), runs_s, own_s))
                fraction = rounds.progress(log.tallies, budget_s, may_end_early=may_end_early)
                self._channel.send("progress", fraction=fraction)
        self._seen_reference_s = log.seen_reference_s()
        if slow := log.slow_rounds():
            self._note(f"the host ran slower than it can in {slow} of {len(log.rounds)} rounds")
        return log.samples(), log.tallies

    def _paced(self) -> float:
        """How long the reference takes on the cores at hand."""
        try:
            return self._reference(self._lent)
        except OSError as error:  # as `_pin` found
            self._note(f"could not use all of the cores {list(self._lent)}: {error.strerror}")
            return self._reference(self._lent[:1])

    def _round(self, runner: Runner, batch: int, usual_s: float) -> tuple[list[float], list[float]]:
        """One burst: each run's time, and for how much of it the measuring thread was running (infinite where it
        waits for others of its pool, so that this says nothing)."""
        count = rounds.round_runs(usual_s) if usual_s > 0 else 1
        runs_s, own_s = [], []
        for _ in range(count):
            begin = time.thread_time()
            runs_s.append(runner.timed(batch))
            own_s.append(time.thread_time() - begin)
        return runs_s, own_s if self._request.threads == 1 else [math.inf] * count

    def _write_samples(self, samples: Samples) -> None:
        with open(self._request.samples, "wb") as file:
            np.savez_compressed(
                file,
                batch=samples.batch,
                round=samples.round,
                seconds=samples.seconds,
                is_spoiled=samples.is_spoiled,
                is_slow=samples.is_slow,
                own_seconds=samples.own_seconds,
            )


def _typical_s(runner: Runner, batch: int) -> float:
    """The lowest median of a few bursts."""
    runner.run(batch)
    count = rounds.round_runs(runner.timed(batch))
    return min(median(runner.timed(batch) for _ in range(count)) for _ in range(SPLIT_BURSTS))


def _drop_from_cache(path: str) -> None:
    """Have the kernel forget the file's pages, so that loading it reads the disk. On tmpfs there is no disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # dirty pages cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _work(request: MeasureRequest, channel: Channel) -> Any:
    with contextlib.closing(Profiler(request, channel)) as profiler:
        return profiler.run()


if __name__ == "__main__":
    serve(MeasureRequest, _work)
