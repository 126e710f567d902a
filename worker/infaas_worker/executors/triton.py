"""Models on a Triton server that was there before us: attached, not managed.

The artifact is a reference (`infaas.triton.reference`): which model of which server, and how its tensors become the
task's. As many batches may be in flight as the server runs at once; each waits in a thread of its own, which joins the
queries, calls, and cuts the answers apart, so that `submit` costs the caller nothing. A loss of the server ends the
instance with the reason and nothing else; it is loaded again, over a new connection, when it is next wanted.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Hardware, Isolation, Profile, Runtime, Variant
from infaas.errors import InfaasError, InvalidError, ModelError, NotFoundError, UnavailableError, UnsupportedError
from infaas.observe.log import get_logger
from infaas.triton.call import Caller
from infaas.triton.facts import changes
from infaas.triton.reference import Reference, client_bytes, read_reference
from infaas.triton.server import TritonServer
from infaas.triton.tensors import Raw, check, cut, join
from infaas_worker.executors.base import BatchIn, BatchOut, Device, LoadedModel, QueryError, QueryIn, Value

_log = get_logger(__name__)
ANSWER_S = 45.0
"""Patience with a variant that was never measured."""
MIN_PATIENCE_S = 1.5
PATIENCE_FACTOR = 15.0
Rows = tuple[list[Datatype], tuple[tuple[Value, ...] | QueryError, ...]]


class TritonExecutor:
    """Entry point `triton` of the group `infaas.executors`."""

    def __init__(self, url: str | None = None, *, is_private: bool = False) -> None:
        """`url`: the server beside this worker, on which everything attached runs (`worker.triton_url`); None: each
        model runs on the server that it was attached from. `is_private`: nobody else uses the one at `url`, so that
        models are unloaded from it; from any other server nothing is ever taken away."""
        self._url = url
        self._is_private = is_private and url is not None
        self._servers: dict[str, _Server] = {}
        self._lock = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        return Runtime.TRITON

    @property
    def devices(self) -> tuple[Device, ...]:
        """The server's, none of this worker's; what an instance takes here is memory for its batches."""
        return (Device(Hardware.CPU), Device(Hardware.GPU))

    def load(self, variant: Variant, artifact: Path) -> LoadedModel:
        """Raises UnavailableError too: without an answer of the server there is nothing to load."""
        if variant.runtime is not Runtime.TRITON:
            raise UnsupportedError(f"{variant.name} is for {variant.runtime.value}; this executor calls Triton servers")
        if variant.isolation is not Isolation.THREAD:
            raise UnsupportedError(
                f"{variant.name} asks for isolation {variant.isolation.value!r}; its server's process is one already"
            )
        try:
            reference = read_reference(artifact)
        except InvalidError as error:
            raise ModelError(f"the Triton executor cannot load {variant.name}: {error.text}") from error
        _check_variant(variant, reference)
        server = self._join(self._url or reference.url)
        try:
            server.load(reference)
            _check_server(variant, reference, server.connection)
            return TritonModel(variant, reference, server.connection, lambda: self._leave(server, reference))
        except BaseException:
            self._leave(server, reference)
            raise

    def _join(self, url: str) -> _Server:
        with self._lock:
            server = self._servers.get(url)
            if server is None:
                server = self._servers[url] = _Server(url, is_private=self._is_private)
            server.users += 1
            return server

    def _leave(self, server: _Server, reference: Reference) -> None:
        """The last one out closes the connection, so that the next one in does not wait for an old one's backoff."""
        server.release(reference)
        with self._lock:
            server.users -= 1
            if server.users > 0:
                return
            del self._servers[server.connection.url]
        server.connection.close()


class _Use:
    """Of one model of a server, by the instances of this worker."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while the server loads or unloads the model: a load must not find ready what is about to go."""
        self.users = 0
        self.is_ours = False
        """Whether the server has it because we asked."""


class _Server:
    """A connection that instances share, and what they use over it."""

    def __init__(self, url: str, *, is_private: bool) -> None:
        self.connection = TritonServer(url)
        self.users = 0
        self._is_private = is_private
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()

    def load(self, reference: Reference) -> None:
        """Counts a user, also when it fails; `release` must follow. Raises UnavailableError, ModelError."""
        use = self._use(reference.model)
        with use.lock:
            use.users += 1
        self.connection.require_live()
        with use.lock:
            try:
                use.is_ours |= self.connection.ensure_loaded(reference.model, reference.version)
            except (NotFoundError, InvalidError) as error:
                raise ModelError(error.text) from error

    def release(self, reference: Reference) -> None:
        """Unload what we had loaded and nobody uses any more, which can be known of a private server only."""
        use = self._use(reference.model)
        with use.lock:
            use.users -= 1
            if use.users > 0 or not (use.is_ours and self._is_private):
                return
            use.is_ours = False
            try:
                self.connection.unload(reference.model)
            except InfaasError as error:  # a server that is gone holds nothing of ours
                url = self.connection.url
                _log.info("model left on its server", model=reference.model, url=url, reason=error.text)

    def _use(self, model: str) -> _Use:
        with self._lock:
            return self._uses.setdefault(model, _Use())


class TritonModel:
    """An attached model and the threads that wait for its server."""

    def __init__(
        self, variant: Variant, reference: Reference, connection: TritonServer, on_close: Callable[[], None]
    ) -> None:
        self._caller: Caller | None = Caller(variant.name, reference, connection)
        self._memory_bytes = client_bytes(variant.inputs, variant.outputs, reference)
        self._on_close = on_close
        self._inbox: queue.SimpleQueue[tuple[BatchIn, Future[BatchOut]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        self._in_flight = reference.instances
        self._profile = variant.profile
        self._has_answered = False

    @property
    def max_in_flight(self) -> int:
        return self._in_flight

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        """Cancelling the future ends the request, on the server too while it waits there."""
        future: Future[BatchOut] = Future()
        with self._lock:
            if self._is_closed:
                future.set_exception(UnavailableError("the instance has been unloaded"))
                return future
            if len(self._threads) < self._in_flight:
                self._threads.append(self._start(self._caller))
            self._inbox.put((batch, future))
        return future

    def memory_bytes(self) -> int:
        return 0 if self._caller is None else self._memory_bytes

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._caller = None
        self._on_close()

    def _start(self, caller: Caller | None) -> threading.Thread:
        name = f"call-{caller.name}"[:60] if caller else "call"
        thread = threading.Thread(target=self._serve, args=(caller,), name=name, daemon=True)
        thread.start()
        return thread

    def _serve(self, caller: Caller) -> None:
        while (job := self._inbox.get()) is not None:
            batch, future = job
            if future.cancelled():
                continue
            try:
                # Only what is nobody's query has no deadline: before the first answer, a warm-up.
                is_first = batch.timeout_s is None and not self._has_answered
                outcome: BatchOut | InfaasError = _Run(caller, batch, future, self._profile, is_first=is_first).result()
                self._has_answered = True
            except InfaasError as error:
                outcome = error
            except Exception as error:  # whatever it is belongs to this batch; the thread serves the next one
                outcome = ModelError(f"{caller.name} failed: {type(error).__name__}: {error}")
            with suppress(InvalidStateError):  # it was cancelled in this moment: nobody waits for the outcome
                if isinstance(outcome, BatchOut):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
            del job, batch, future, outcome


def patience_s(profile: Profile | None, items: int, *, is_first: bool = False) -> float:
    """How long a batch may take before the server is taken for hanging; far beyond anything that was measured, and
    below the bound at which a worker would take itself for hanging (`decide.hang`). `is_first`: of a warm-up, for which
    the server may still set up what was there when it was measured."""
    if profile is None:
        return ANSWER_S
    usual_s = PATIENCE_FACTOR * profile.latency_s(max(1, items), "p99_s")
    return ANSWER_S + usual_s if is_first else max(MIN_PATIENCE_S, usual_s)


class _Run:
    """One batch on its way through the server."""

    def __init__(
        self, caller: Caller, batch: BatchIn, future: Future[BatchOut], profile: Profile | None, *, is_first: bool
    ) -> None:
        self._caller = caller
        self._batch = batch
        self._future = future
        self._patience_s = patience_s(profile, sum(query.items for query in batch.queries), is_first=is_first)
        self._began = time.perf_counter()
        self._names = _requested(caller, batch)

    def result(self) -> BatchOut:
        """Raises what `LoadedModel.submit` promises."""
        queries = self._batch.queries
        try:
            outcomes: tuple[tuple[Value, ...] | QueryError, ...] = self._run(queries)
        except (InvalidError, ModelError) as error:
            if len(queries) == 1:
                raise
            outcomes = self._run_alone(error)
        datatypes = self._caller.datatypes(self._names)
        return BatchOut(self._names, datatypes, outcomes, time.perf_counter() - self._began)

    def _run_alone(self, cause: InfaasError) -> tuple[tuple[Value, ...] | QueryError, ...]:
        """Each query once by itself, so that one that makes the model fail hurts nobody else."""
        outcomes: list[tuple[Value, ...] | QueryError] = []
        for query in self._batch.queries:
            try:
                outcomes += self._run((query,))
            except (InvalidError, ModelError) as error:
                outcomes.append(QueryError(error.code, error.text))
        if all(isinstance(outcome, QueryError) for outcome in outcomes):
            raise cause
        return tuple(outcomes)

    def _run(self, queries: Sequence[QueryIn]) -> tuple[tuple[Value, ...], ...]:
        counts = [query.items for query in queries]
        feed = self._feed(queries)
        try:
            answers = self._caller.run(feed, sum(counts), self._names, self._left_s(), self._on_start)
        except InfaasError as error:
            if error.code is Code.DEADLINE_PASSED and self._patience_s < self._useful_s:
                raise UnavailableError(f"{error.text}; it is taken for hanging") from error
            raise
        datatypes = self._caller.datatypes(self._names)
        columns = [
            [Value(part.shape, part.data) for part in cut(name, datatype, raw, counts)]
            for name, datatype, raw in zip(self._names, datatypes, answers, strict=True)
        ]
        return tuple(zip(*columns, strict=True))

    def _left_s(self) -> float:
        """For all that this batch still asks of the server."""
        return max(0.001, min(self._useful_s, self._patience_s) - (time.perf_counter() - self._began))

    @property
    def _useful_s(self) -> float:
        return math.inf if self._batch.timeout_s is None else self._batch.timeout_s

    def _on_start(self, call: Any) -> None:
        def cancel(future: Future[BatchOut]) -> None:
            if future.cancelled():
                call.cancel()

        self._future.add_done_callback(cancel)

    def _feed(self, queries: Sequence[QueryIn]) -> dict[str, Raw]:
        batch, caller = self._batch, self._caller
        feed: dict[str, Raw] = {}
        for index, (name, datatype) in enumerate(zip(batch.input_names, batch.datatypes, strict=True)):
            known = caller.inputs.get(name)
            if known is None:
                raise InvalidError(f"{caller.name} has no input {name!r}; it has {', '.join(caller.inputs)}")
            if known.task_type is not datatype:
                raise InvalidError(f"input {name!r} is {datatype.value}, {caller.name} takes {known.task_type.value}")
            feed[name] = join(name, [_part(name, datatype, query, index) for query in queries])
        missing = [name for name in caller.inputs if name not in feed]
        if missing:
            raise InvalidError(f"{caller.name} lacks input {', '.join(repr(name) for name in missing)}")
        return feed


def _part(name: str, datatype: Datatype, query: QueryIn, index: int) -> Raw:
    if index >= len(query.inputs):
        raise InvalidError(f"a query has {len(query.inputs)} inputs, input {name!r} is number {index + 1}")
    value = query.inputs[index]
    raw = Raw(value.shape, value.data)
    check(name, datatype, raw)
    if not raw.shape or raw.shape[0] != query.items:
        raise InvalidError(
            f"input {name!r} has shape {list(raw.shape)}, a query of {query.items} items starts with that"
        )
    return raw


def _requested(caller: Caller, batch: BatchIn) -> tuple[str, ...]:
    if not batch.outputs:
        return tuple(caller.outputs)
    unknown = [name for name in batch.outputs if name not in caller.outputs]
    if unknown:
        raise InvalidError(f"{caller.name} has no output {unknown[0]!r}; it has {', '.join(caller.outputs)}")
    return batch.outputs


def _check_variant(variant: Variant, reference: Reference) -> None:
    """The reference must be the variant's, or queries that were checked against the task would fail one by one."""
    inputs = {one.ours: one.task_type for one in reference.inputs}
    wanted = {spec.name for spec in variant.inputs}
    problems = [
        f"input {spec.name!r} is {spec.datatype.value}, {_word(inputs.get(spec.name))} in the reference"
        for spec in variant.inputs
        if inputs.get(spec.name) is not spec.datatype
    ]
    problems += [f"the reference has an input {name!r}, the variant has not" for name in inputs if name not in wanted]
    known = {one.ours for one in reference.outputs}
    problems += [f"the reference lacks output {spec.name!r}" for spec in variant.outputs if spec.name not in known]
    if problems:
        raise ModelError(f"the artifact of {variant.name} does not fit it: {'; '.join(problems)}")


def _check_server(variant: Variant, reference: Reference, connection: TritonServer) -> None:
    try:
        changed = changes(reference, connection.facts(reference.model, reference.version))
    except (NotFoundError, InvalidError) as error:
        raise ModelError(f"{variant.name} cannot run: {error.text}") from error
    if changed:
        raise ModelError(
            f"model {reference.model!r} at {connection.url} is not what was attached: {'; '.join(changed)}; "
            "attach it again"
        )


def _word(datatype: Datatype | None) -> str:
    return "absent" if datatype is None else datatype.value
