"""Every program of the system is killed once while it is needed: what happens to queries, builds and models then.

The tests share one system and leave it whole. The supervisor starts a killed program again by itself.
"""

from __future__ import annotations

from collections import Counter

import psutil
import pytest
from running_system import (
    TASK,
    Scans,
    System,
    Traffic,
    ask_until_answered,
    left_of,
    member,
    running,
    wait_for,
)

from infaas.control import BuildDocument
from infaas.errors import InfaasError

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
MODEL = "digits-mlp"


@pytest.fixture(scope="module")
def system(fresh_module_system: System) -> System:
    fresh_module_system.register(member(MODEL))
    return fresh_module_system


def build_of(system: System, name: str) -> BuildDocument:
    with system.client() as client:
        return client.build(name, 1)


def is_between_recipes(build: BuildDocument) -> bool:
    """Some variants are made already, some not yet: a good moment to lose the generator."""
    stages = Counter(one.stage == "done" for one in build.progress if one.recipe != "*")
    return stages[True] >= 1 and stages[False] >= 1


def assert_one_set_of_variants(system: System, name: str) -> None:
    with system.client() as client:
        document = client.model(name)
        assert [(one.version, one.state) for one in document.versions] == [(1, "READY")]
        recipes = Counter(outcome.recipe for outcome in document.versions[0].outcomes)
        assert set(recipes.values()) == {1}, recipes
        made = sorted(o.variant or "" for o in document.versions[0].outcomes if o.outcome == "made")
        assert made == sorted(v.name for v in client.variants(model=name))
        assert len(made) == len(set(made)) >= 2


def test_a_generator_killed_in_the_middle_of_a_build_resumes_it(system: System, scans: Scans) -> None:
    model = member("digits-cnn-medium")
    system.register(model, "--detach")
    seen = wait_for(lambda: _when(build_of(system, model.name)), "a build that has made something")
    done = {one.recipe for one in seen.progress if one.stage == "done"}
    generator = psutil.Process(system.program("generator").pid)
    helpers = generator.children(recursive=True)

    before = system.kill("generator")

    wait_for(lambda: not left_of(helpers), "what the generator had started to end with it")
    system.wait_restarted(before)
    system.infaas("model", "status", model.name, "--watch")
    assert_one_set_of_variants(system, model.name)
    with system.client() as client:
        made = {o.recipe for o in client.version(model.name, 1).outcomes if o.outcome == "made"}
        assert done <= made, "what was made before the crash is kept"
        served = client.infer(model.name, scans.rows(0)).served.variant
    assert served is not None
    assert served.startswith(f"{model.name}.v1.")


def _when(build: BuildDocument) -> BuildDocument | None:
    assert build.state not in ("READY", "FAILED"), "the build was over before anything could be killed"
    return build if is_between_recipes(build) else None


def test_a_killed_worker_is_started_again_and_queries_are_served_again(system: System, scans: Scans) -> None:
    with system.client() as client, Traffic(client.url, TASK, scans).running() as traffic:
        before = system.kill("worker-local-1")
        system.wait_restarted(before)
        wait_for(lambda: any(one.is_connected for one in client.workers()), "the worker to be connected")
        ask_until_answered(client, TASK, scans)
        after = traffic.wait_for_more(50)
    assert not [one for one in after if one.error is not None]
    # Until it was back nobody was told anything but to come again.
    assert {(one.error or "").split(":")[0] for one in traffic.failed} <= {"no-worker", "loading", "draining"}


def test_a_killed_controller_comes_back_with_every_model(system: System, scans: Scans) -> None:
    with system.client() as client:
        models = {model.name: model.current for model in client.models()}
        variants = {v.name for v in client.variants()}
    assert len(models) >= 1
    url = system.endpoints.url

    before = system.kill("controller")

    system.wait_restarted(before)
    wait_for(lambda: system.endpoints.url != url and _is_ready(system), "the new controller to be ready")
    with system.client() as client:
        assert {model.name: model.current for model in client.models()} == models
        assert {v.name for v in client.variants()} == variants
        wait_for(lambda: any(one.is_connected for one in client.workers()), "the worker to be connected")
        for model in models:
            served = ask_until_answered(client, model, scans)
            assert served in variants
        assert client.infer(TASK, scans.rows(1)).served.variant in variants


def _is_ready(system: System) -> bool:
    with system.client() as client:
        return client.is_ready()


def test_queries_go_on_while_redis_is_gone_and_it_comes_back(system: System, scans: Scans) -> None:
    with system.client() as client, Traffic(client.url, TASK, scans).running() as traffic:
        before = system.kill("redis")
        traffic.wait_for_more(50)
        system.wait_restarted(before)
        traffic.wait_for_more(50)

        # The control plane is whole again when something new can be registered and serves.
        def register() -> bool:
            try:
                with system.client() as other:
                    return other.is_ready() and bool(system.register(member("digits-centroid")))
            except (AssertionError, InfaasError):
                return False

        wait_for(register, "a registration after Redis is back")
        ask_until_answered(client, "digits-centroid", scans)
        traffic.wait_for_more(20)
    assert traffic.failed == []


def test_a_system_is_brought_up_again_with_what_it_knew(system: System, scans: Scans) -> None:
    with system.client() as client:
        models = {model.name: model.current for model in client.models()}
        variants = {v.name for v in client.variants()}
    system.down()
    system.up()
    with system.client() as client:
        assert {model.name: model.current for model in client.models()} == models
        assert {v.name for v in client.variants()} == variants
        for model in models:
            assert ask_until_answered(client, model, scans) in variants


def test_when_the_supervisor_is_killed_during_a_build_nothing_of_it_is_left(
    tmp_path_factory: pytest.TempPathFactory, scans: Scans
) -> None:
    folder = tmp_path_factory.mktemp("e2e")
    model = member("digits-cnn-medium")
    system = System(folder)
    try:
        system.up()
        system.register(model, "--detach")
        wait_for(lambda: _when(build_of(system, model.name)), "a build that has made something")
        processes: list[psutil.Process] = []

        def has_children() -> bool:
            # Between two recipes the build has none for a moment.
            processes[:] = system.processes()
            return len(processes) > len(system.record.programs) + 1

        wait_for(has_children, "a process of the build's own")

        processes[0].kill()

        wait_for(lambda: not left_of(processes), f"the end of {left_of(processes)}")
    finally:
        system.close()

    with running(folder) as again:
        again.infaas("model", "status", model.name, "--watch")
        assert_one_set_of_variants(again, model.name)
        with again.client() as client:
            ask_until_answered(client, TASK, scans)
