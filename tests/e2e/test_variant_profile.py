"""Measuring a variant anew, by the command line, in a whole system that loses parts meanwhile."""

from __future__ import annotations

import psutil
import pytest
from redis import Redis
from running_system import Scans, System, Traffic, left_of, member, wait_for

from infaas.control import ProfilingDocument

MODEL = "digits-mlp"
VARIANT = f"{MODEL}.v1.ort-fp32-t1"

pytestmark = pytest.mark.long


@pytest.fixture
def system(quick_system: System) -> System:
    quick_system.register(member(MODEL))
    return quick_system


def is_measuring(system: System, number: int) -> ProfilingDocument | None:
    with system.client() as client:
        seen = client.profiling(VARIANT, number)
    assert seen.state in ("Pending", "Running"), "it was over before anything could be lost"
    return seen if seen.progress is not None and seen.progress.stage == "profiling" else None


def test_a_variant_is_measured_anew_while_it_serves(system: System, scans: Scans) -> None:
    (old,) = system.json("variant", "profile", VARIANT, "--history")["profiles"]
    with system.client() as client, Traffic(client.url, VARIANT, scans).running() as traffic:
        said = system.infaas("variant", "profile", VARIANT, "--budget", "0.2")
        traffic.wait_for_more()
    assert traffic.failed == []
    assert "is measured anew" in said
    assert f"{VARIANT} ort-fp32-t1: done" in said
    new, before = system.json("variant", "profile", VARIANT, "--history")["profiles"]
    assert before == old, "the older profile stays"
    assert new["budget_s"] == 0.2
    assert new["samples"] != old["samples"]
    assert new["accuracy"] == old["accuracy"]
    found = system.json("variant", "describe", VARIANT)
    assert found["samples"] == new["samples"], "the newest counts"
    assert found["state"] == "READY"
    with system.client() as client:
        variants = [one.name for one in client.variants(model=MODEL)]
    assert len(variants) == len(set(variants)), "no variant was made"


def test_what_cannot_be_measured_is_one_line(system: System) -> None:
    assert "error (not-found): there is no variant 'nobody'" in system.infaas("variant", "profile", "nobody", expect=1)
    said = system.infaas("variant", "profile", VARIANT, "--budget", "0", expect=1)
    assert "budget_s" in said
    system.infaas("model", "unregister", MODEL)
    said = system.infaas("variant", "profile", VARIANT, expect=1)
    assert "error (precondition-failed)" in said
    assert "retired" in said


def test_a_profiling_outlives_a_killed_generator_and_an_emptied_store(system: System) -> None:
    ordered = system.json("variant", "profile", VARIANT, "--budget", "8", "--detach")
    wait_for(lambda: is_measuring(system, ordered["id"]), "the measuring to begin")
    helpers = psutil.Process(system.program("generator").pid).children(recursive=True)
    before = system.kill("generator")
    wait_for(lambda: not left_of(helpers), "what the generator had started to end with it")
    system.wait_restarted(before)
    wait_for(lambda: is_measuring(system, ordered["id"]), "the next generator to begin it again")
    with Redis(unix_socket_path=str(system.folder / "redis.sock")) as redis:
        redis.flushall()

    def is_over() -> ProfilingDocument | None:
        with system.client() as client:
            seen = client.profiling(VARIANT, ordered["id"])
        assert seen.state != "Failed", seen.reason
        return seen if seen.state == "Succeeded" else None

    wait_for(is_over, "the profiling to succeed")
    new, _ = system.json("variant", "profile", VARIANT, "--history")["profiles"]
    assert new["budget_s"] == 8.0
    with system.client() as client:
        assert [one.id for one in client.profilings(VARIANT)] == [ordered["id"]]
