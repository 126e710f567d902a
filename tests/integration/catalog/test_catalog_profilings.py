from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Claim, Registration
from infaas.domain.build import BuildResult, ProfilingState
from infaas.domain.ids import TaskName
from infaas.domain.lifecycle import BuildState
from infaas.domain.task import Task
from infaas.errors import ConflictError, NotFoundError, PreconditionError
from infaas.testing.builders import a_profile

VARIANT = "m.v1.fp32"
PROFILE = a_profile(batches=(1, 2))


@pytest.fixture
def building(catalog: Catalog, registration: Callable[..., Registration], made: Callable[..., BuildResult]) -> Catalog:
    """Version 1 of `m` has its variant, and its build is not over."""
    version = catalog.register(registration(), at=1.0, actor="t").version
    catalog.transition(version.id, BuildState.RECEIVED, BuildState.BUILDING, "", at=1.0)
    catalog.record_result(version.id, made(profile=PROFILE), at=1.0)
    return catalog


@pytest.fixture
def ready(building: Catalog) -> Catalog:
    version = building.version("m", 1)
    assert version is not None
    building.finish(version.id, BuildState.READY, "", at=2.0)
    return building


def test_a_new_profile_counts_and_the_older_one_stays(ready: Catalog) -> None:
    before = ready.revision()
    ordered = ready.order_profiling(VARIANT, 3.0, at=3.0, actor="alice")
    assert (ordered.is_new, ordered.profiling.state) == (True, ProfilingState.PENDING)
    assert ready.revision() > before
    number = ordered.profiling.id
    ready.start_profiling(number, at=4.0)
    newer = replace(PROFILE, throughput_per_s=2000.0, measured_at="later")
    assert ready.finish_profiling(number, newer, "notes", at=5.0)
    assert not ready.finish_profiling(number, PROFILE, "", at=6.0), "what comes twice counts once"
    variant = ready.variant(VARIANT)
    assert variant is not None
    assert variant.profile == newer
    assert list(ready.profiles(VARIANT)) == [PROFILE, newer]
    (row,) = ready.profilings(VARIANT)
    assert (row.state, row.reason, row.updated_at) == (ProfilingState.SUCCEEDED, "notes", 5.0)
    log = [(one.action, one.actor) for one in ready.audit_log(subject=VARIANT)]
    assert log == [("variant.profile.succeeded", "registrar"), ("variant.profile", "alice")]


def test_a_profiling_that_failed_leaves_the_profile_as_it_was(ready: Catalog) -> None:
    number = ready.order_profiling(VARIANT, 3.0, at=3.0, actor="t").profiling.id
    assert ready.finish_profiling(number, None, "the process died", at=4.0)
    assert list(ready.profiles(VARIANT)) == [PROFILE]
    row = ready.profiling(number)
    assert row is not None
    assert (row.state, row.reason) == (ProfilingState.FAILED, "the process died")


def test_an_open_order_is_joined_and_another_budget_is_a_conflict(ready: Catalog) -> None:
    first = ready.order_profiling(VARIANT, 3.0, at=3.0, actor="t")
    again = ready.order_profiling(VARIANT, 3.0, at=4.0, actor="t")
    assert (again.is_new, again.profiling) == (False, first.profiling)
    with pytest.raises(ConflictError, match="being measured already, for 3 s"):
        ready.order_profiling(VARIANT, 4.0, at=4.0, actor="t")
    assert len(ready.open_profilings()) == 1
    ready.finish_profiling(first.profiling.id, None, "x", at=5.0)
    assert ready.order_profiling(VARIANT, 4.0, at=6.0, actor="t").is_new


def test_a_key_stands_for_one_order_even_after_its_end(ready: Catalog) -> None:
    claim = Claim("k", "f" * 64)
    first = ready.order_profiling(VARIANT, 3.0, at=3.0, actor="t", claim=claim).profiling
    ready.finish_profiling(first.id, None, "x", at=4.0)
    again = ready.order_profiling(VARIANT, 3.0, at=5.0, actor="t", claim=claim)
    assert (again.is_new, again.profiling.id) == (False, first.id)
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        ready.order_profiling(VARIANT, 4.0, at=5.0, actor="t", claim=Claim("k", "e" * 64))


def test_only_a_variant_in_service_can_be_measured_anew(building: Catalog) -> None:
    with pytest.raises(NotFoundError, match="no variant 'nobody'"):
        building.order_profiling("nobody", 3.0, at=3.0, actor="t")
    with pytest.raises(PreconditionError, match="version 1 of 'm', which is BUILDING"):
        building.order_profiling(VARIANT, 3.0, at=3.0, actor="t")
    version = building.version("m", 1)
    assert version is not None
    building.finish(version.id, BuildState.READY, "", at=2.0)
    number = building.order_profiling(VARIANT, 3.0, at=3.0, actor="t").profiling.id
    building.retire_model("m", at=4.0, actor="t")
    row = building.profiling(number)
    assert row is not None
    assert (row.state, row.reason) == (ProfilingState.CANCELLED, "unregistered")
    with pytest.raises(PreconditionError, match="retired"):
        building.order_profiling(VARIANT, 3.0, at=5.0, actor="t")


def test_a_claimed_task_is_created_once_and_its_retry_is_no_conflict(catalog: Catalog, ready: Catalog) -> None:
    task = Task(TaskName("other"), (), ())
    claim = Claim("k", "a" * 64)
    catalog.create_task(task, at=1.0, actor="t", claim=claim)
    catalog.create_task(task, at=2.0, actor="t", claim=claim)
    assert [one.name for one in catalog.tasks()] == ["digits", "other"]
    with pytest.raises(ConflictError, match="already taken"):
        catalog.create_task(task, at=3.0, actor="t", claim=Claim("k2", "a" * 64))
    with pytest.raises(ConflictError, match="already taken"):
        catalog.create_task(task, at=3.0, actor="t", claim=Claim("k2", "a" * 64))


def test_a_retried_rollback_goes_back_once(
    ready: Catalog, registration: Callable[..., Registration], made: Callable[..., BuildResult]
) -> None:
    for number in (2, 3):
        version = ready.register(registration(str(number) * 64, is_task_known=True), at=1.0, actor="t").version
        ready.transition(version.id, BuildState.RECEIVED, BuildState.BUILDING, "", at=1.0)
        ready.record_result(version.id, made(version=number), at=1.0)
        ready.finish(version.id, BuildState.READY, "", at=2.0)
    ready.switch("m", 3, at=3.0)
    claim = Claim("k", "a" * 64)
    ready.want("m", None, at=4.0, actor="t", claim=claim)
    ready.switch("m", 2, at=5.0)
    ready.want("m", None, at=6.0, actor="t", claim=claim)
    row = ready.model("m")
    assert row is not None
    assert (row.wanted, row.current) == (2, 2), "the answer was lost, not the rollback"
