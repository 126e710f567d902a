"""Waiting for many builds at once, with one progress bar per model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infaas.cli.builds import ENDED_STAGES, OVER, WHOLE_BUILD, wait_until_serving
from infaas.client import Client
from infaas.control import BuildDocument
from infaas.domain.query import Code
from infaas.errors import InfaasError

if TYPE_CHECKING:
    from rich.console import Console

LOOK_EVERY_S = 0.3


def wait_for_all(client: Client, versions: Sequence[tuple[str, int]], out: Console) -> None:
    """Until every version serves. Raises InfaasError naming the versions that failed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[stage]}"))
    failed = []
    with Progress(*columns, TimeElapsedColumn(), console=out, disable=not out.is_terminal) as progress:
        bars = {one: progress.add_task(one[0], total=1.0, stage="waiting") for one in versions}
        waiting = list(versions)
        while waiting:
            for one in list(waiting):
                build = client.build(*one)
                fraction, stage = summary(build)
                progress.update(bars[one], completed=fraction, stage=stage)
                if build.state in OVER:
                    progress.stop_task(bars[one])
                    waiting.remove(one)
                    if build.state != "READY":
                        failed.append(f"{one[0]}: {build.state}, {build.reason}")
                    elif not out.is_terminal:
                        out.print(f"  {one[0]}: {stage}", markup=False)
            if waiting:
                time.sleep(LOOK_EVERY_S)
    if failed:
        raise InfaasError("; ".join(failed), code=Code.MODEL_FAILED, problems=failed)
    for model, version in versions:
        if not wait_until_serving(client, model, version) and client.model(model).serves is None:
            raise InfaasError(f"{model} is READY but does not serve", code=Code.UNAVAILABLE)


def summary(build: BuildDocument) -> tuple[float, str]:
    """How much of a build is done, and what is going on in it."""
    if build.state in OVER:
        return 1.0, f"{build.state.lower()}{f': {build.reason}' if build.reason else ''}"
    recipes = [one for one in build.progress if one.recipe != WHOLE_BUILD]
    if not recipes:
        return 0.0, build.state.lower()
    done = sum(1.0 if one.stage in ENDED_STAGES else one.fraction for one in recipes)
    active = [one for one in recipes if one.stage not in ENDED_STAGES and one.stage != "planned"]
    stage = f"{active[0].recipe} {active[0].stage}" if active else "waiting"
    return done / len(recipes), stage
