"""Following builds: a progress bar for every variant that is being made and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from infaas.client import Client
    from infaas.control import BuildDocument, ProfilingDocument
    from infaas.domain.build import BuildProgress

T = TypeVar("T")
OVER = frozenset({"READY", "FAILED", "RETIRED"})
PROFILING_OVER = frozenset({"Succeeded", "Failed", "Cancelled"})
ENDED_STAGES = frozenset({"done", "skipped", "failed"})
WHOLE_BUILD = "*"
"""The progress record that speaks of the build rather than of a recipe."""
RECONNECT_S = 0.5
RECONNECTS = 20
SERVING_WITHIN_S = 60.0
LOOK_EVERY_S = 0.1


def follow(client: Client, model: str, version: int) -> Iterator[BuildDocument]:
    """Every change of a build until it is over. Raises UnavailableError when the controller stays away."""
    return _follow(
        lambda: client.watch_build(model, version),
        lambda: client.build(model, version),
        lambda document: document.state in OVER,
    )


def follow_profiling(client: Client, variant: str, number: int) -> Iterator[ProfilingDocument]:
    """Every change of a profiling until it is over. Raises UnavailableError when the controller stays away."""
    return _follow(
        lambda: client.watch_profiling(variant, number),
        lambda: client.profiling(variant, number),
        lambda document: document.state in PROFILING_OVER,
    )


def _follow(watch: Callable[[], Iterator[T]], read: Callable[[], T], is_over: Callable[[T], bool]) -> Iterator[T]:
    """A stream that breaks off is taken up again."""
    from infaas.errors import UnavailableError

    misses = 0
    while True:
        try:
            for document in watch():
                misses = 0
                yield document
                if is_over(document):
                    return
        except UnavailableError:
            if misses >= RECONNECTS:
                raise
        misses += 1
        time.sleep(RECONNECT_S)
        try:
            document = read()
        except UnavailableError:
            if misses >= RECONNECTS:
                raise
            continue
        yield document
        if is_over(document):
            return


def wait_until_serving(client: Client, model: str, version: int) -> bool:
    """A READY version is warmed before queries are switched to it; False when another one got ahead, or it is late.

    What counts is what this controller gives to queries: the next command may be one, and the catalogue knows earlier.
    """
    deadline = time.monotonic() + SERVING_WITHIN_S
    while time.monotonic() < deadline:
        serves = client.model(model).serves
        if serves is not None and serves >= version:
            return serves == version
        time.sleep(LOOK_EVERY_S)
    return False


class Bars:
    """Progress bars, one per recipe of any number of builds. On a pipe: a line when a recipe ends."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._out = out
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._ended: set[tuple[str, str]] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, build: BuildDocument) -> None:
        for progress in build.progress:
            if progress.recipe != WHOLE_BUILD:
                self.show(build.model, progress)

    def show(self, subject: str, progress: BuildProgress) -> None:
        """One bar's state; `subject` is whose recipe it is."""
        key = (subject, progress.recipe)
        stage = f"{progress.stage} {progress.detail}".strip()
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(f"{subject} {progress.recipe}", total=1.0, stage=stage)
        is_over = progress.stage in ENDED_STAGES
        self._progress.update(self._bars[key], completed=1.0 if is_over else progress.fraction, stage=stage)
        if is_over and key not in self._ended:
            self._ended.add(key)
            if not self._out.is_terminal:
                self._out.print(f"{subject} {progress.recipe}: {stage}", markup=False)


def show_outcomes(client: Client, model: str, version: int) -> None:
    """What became of each recipe."""
    from infaas.cli.output import Table, number, show

    document = client.version(model, version)
    table = Table("RECIPE", "OUTCOME", "VARIANT", ">MAX ERROR", ">SECONDS", "REASON")
    for outcome in document.outcomes:
        error = number(outcome.max_abs_error)
        table.add(
            outcome.recipe, outcome.outcome, outcome.variant, error, number(outcome.seconds), outcome.reason or "-"
        )
    show(table)
