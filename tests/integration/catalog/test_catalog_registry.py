from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Registration, TaskAppearedError
from infaas.domain.build import BuildResult
from infaas.domain.ids import InstanceId, ModelName, TaskName, VersionId
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Decision, Level
from infaas.domain.variant import Isolation, Runtime, VariantState
from infaas.errors import ConflictError, InvalidError, NotFoundError, PreconditionError

MakeRegistration = Callable[..., Registration]
MakeResult = Callable[..., BuildResult]
V1, V2 = VersionId("m@1"), VersionId("m@2")


def _register(catalog: Catalog, registration: Registration) -> int:
    known = catalog.task(registration.task.name) is not None
    return catalog.register(replace(registration, is_task_known=known), at=1.0, actor="t").version.number


def _build(catalog: Catalog, made: MakeResult, version: int = 1) -> None:
    catalog.record_result(VersionId(f"m@{version}"), made(version=version), at=2.0)
    catalog.finish(VersionId(f"m@{version}"), BuildState.READY, "", at=3.0)


def test_the_first_registration_creates_task_model_and_version(
    catalog: Catalog, registration: MakeRegistration
) -> None:
    done = catalog.register(registration(labels={"team": "a"}), at=1.0, actor="t")
    assert (done.version.id, done.version.state, done.is_new, done.created_task) == (
        V1,
        BuildState.RECEIVED,
        True,
        True,
    )
    assert catalog.level_of("digits") is Level.TASK
    assert catalog.level_of("m") is Level.MODEL
    model = catalog.model("m")
    assert model is not None
    assert (model.current, model.wanted, dict(model.labels)) == (None, None, {"team": "a"})


def test_the_same_file_is_the_same_version_and_a_changed_one_the_next(
    catalog: Catalog, registration: MakeRegistration
) -> None:
    assert _register(catalog, registration("1" * 64)) == 1
    assert _register(catalog, registration("1" * 64)) == 1
    assert _register(catalog, registration("2" * 64)) == 2
    again = catalog.register(registration("1" * 64, is_task_known=True), at=1.0, actor="t")
    assert not again.is_new


def test_a_task_that_appeared_meanwhile_sends_the_registration_back(
    catalog: Catalog, registration: MakeRegistration
) -> None:
    catalog.register(registration(), at=1.0, actor="t")
    with pytest.raises(TaskAppearedError):
        catalog.register(registration("2" * 64, model=ModelName("other")), at=1.0, actor="t")
    assert catalog.model("other") is None


def test_names_are_unique_across_levels(catalog: Catalog, registration: MakeRegistration, made: MakeResult) -> None:
    _register(catalog, registration())
    with pytest.raises(ConflictError, match="taken by a task"):
        _register(catalog, registration("3" * 64, model=ModelName("digits")))
    with pytest.raises(ConflictError, match="taken by a model"):
        catalog.create_task(replace(registration().task, name=TaskName("m")), at=1.0, actor="t")
    catalog.record_result(V1, made(), at=1.0)
    with pytest.raises(ConflictError, match="taken by a variant"):
        _register(catalog, registration("3" * 64, model=ModelName("m.v1.fp32")))


def test_a_model_stays_with_its_task(catalog: Catalog, registration: MakeRegistration) -> None:
    _register(catalog, registration())
    other = replace(registration().task, name=TaskName("other"))
    with pytest.raises(ConflictError, match="solves task 'digits'"):
        _register(catalog, registration("3" * 64, task=other))
    assert catalog.task("other") is None


def test_states_change_along_the_table_and_by_compare_and_set(catalog: Catalog, registration: MakeRegistration) -> None:
    _register(catalog, registration())
    with pytest.raises(PreconditionError):
        catalog.transition(V1, BuildState.RECEIVED, BuildState.READY, "", at=2.0)
    catalog.transition(V1, BuildState.RECEIVED, BuildState.BUILDING, "", at=2.0)
    with pytest.raises(PreconditionError, match="not RECEIVED any more"):
        catalog.transition(V1, BuildState.RECEIVED, BuildState.BUILDING, "", at=2.0)


def test_a_finished_build_is_wanted_but_serves_only_after_the_switch(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    _build(catalog, made)
    model = catalog.model("m")
    assert model is not None
    assert (model.current, model.wanted) == (None, 1)
    assert catalog.switch("m", 1, at=4.0)
    model = catalog.model("m")
    assert model is not None
    assert model.current == 1


def test_an_older_build_that_ends_late_is_not_wanted(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration("1" * 64))
    _register(catalog, registration("2" * 64))
    _build(catalog, made, 2)
    _build(catalog, made, 1)
    model = catalog.model("m")
    assert model is not None
    assert model.wanted == 2


def test_a_switch_to_what_is_no_longer_wanted_does_nothing(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration("1" * 64))
    _register(catalog, registration("2" * 64))
    _build(catalog, made, 1)
    _build(catalog, made, 2)
    assert not catalog.switch("m", 1, at=4.0)
    catalog.want("m", 1, at=4.0, actor="t")
    assert catalog.switch("m", 1, at=4.0)


def test_only_a_ready_version_can_be_wanted(catalog: Catalog, registration: MakeRegistration) -> None:
    _register(catalog, registration())
    with pytest.raises(PreconditionError, match="RECEIVED, not READY"):
        catalog.want("m", 1, at=1.0, actor="t")
    with pytest.raises(NotFoundError):
        catalog.want("m", 9, at=1.0, actor="t")


def test_results_are_recorded_once_however_often_they_come(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    assert catalog.record_result(V1, made(), at=1.0)
    assert not catalog.record_result(V1, made(), at=2.0)
    assert len(catalog.profiles("m.v1.fp32")) == 1
    assert [(r.recipe, r.outcome, r.variant) for r in catalog.results(V1)] == [("fp32", "made", "m.v1.fp32")]


def test_a_variant_comes_back_as_it_was_made(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    result = made()
    _build(catalog, made)
    assert catalog.variant("m.v1.fp32") == result.variant
    assert list(catalog.variants()) == [result.variant]
    assert list(catalog.variants_of(V1)) == [result.variant]


def test_what_runs_on_a_server_is_given_no_process_of_its_own_with_the_reason(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    catalog.record_result(V1, made(runtime=Runtime.TRITON), at=2.0)
    with pytest.raises(InvalidError, match="runs on a triton server, not in a worker"):
        catalog.isolate_variant("m.v1.fp32", Isolation.PROCESS, "asked for", at=3.0, actor="t")
    variant = catalog.variant("m.v1.fp32")
    assert variant is not None
    assert variant.isolation is Isolation.THREAD


def test_a_death_that_was_pardoned_since_it_was_seen_isolates_nothing_and_a_later_one_does(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    catalog.record_result(V1, made(), at=2.0)
    seen, later = InstanceId("i1"), InstanceId("i2")
    pardon = partial(catalog.isolate_variant, "m.v1.fp32", Isolation.THREAD, "asked for", actor="me", pardoned=(seen,))
    isolate = partial(catalog.isolate_variant, "m.v1.fp32", Isolation.PROCESS, "it crashed", actor="registrar")

    assert pardon(at=3.0)
    assert not isolate(at=4.0, death=seen)
    variant = catalog.variant("m.v1.fp32")
    assert variant is not None
    assert (variant.isolation, variant.pardoned) == (Isolation.THREAD, (seen,))
    assert isolate(at=5.0, death=later)


def test_a_variant_whose_name_is_taken_is_a_recorded_failure(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    _register(catalog, registration("9" * 64, model=ModelName("m.v1.fp32")))
    catalog.record_result(V1, made(), at=1.0)
    (result,) = catalog.results(V1)
    assert result.outcome == "failed"
    assert "taken by a model" in result.reason


def test_unregistering_keeps_history_and_the_same_file_revives_it(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration("1" * 64))
    _build(catalog, made)
    catalog.switch("m", 1, at=4.0)
    assert catalog.retire_model("m", at=5.0, actor="t")
    assert not catalog.retire_model("m", at=5.0, actor="t")
    assert not catalog.models()
    variant = catalog.variant("m.v1.fp32")
    assert variant is not None
    assert variant.state is VariantState.RETIRED
    done = catalog.register(registration("1" * 64, is_task_known=True), at=6.0, actor="t")
    assert (done.version.number, done.version.state, done.is_new) == (1, BuildState.READY, True)
    model = catalog.model("m")
    assert model is not None
    assert (model.current, model.wanted, model.retired_at) == (None, 1, None)


def test_a_version_retired_before_it_was_built_is_built_when_it_comes_back(
    catalog: Catalog, registration: MakeRegistration
) -> None:
    _register(catalog, registration())
    catalog.retire_model("m", at=2.0, actor="t")
    done = catalog.register(registration(is_task_known=True), at=3.0, actor="t")
    assert done.version.state is BuildState.RECEIVED


def test_a_failed_version_is_tried_again_with_the_new_data(catalog: Catalog, registration: MakeRegistration) -> None:
    _register(catalog, registration())
    failed = BuildResult(made_id(), "fp32", None, "failed", "no")
    catalog.record_result(V1, failed, at=2.0)
    catalog.finish(V1, BuildState.FAILED, "no recipe worked", at=2.0)
    done = catalog.register(registration(is_task_known=True, evaluation="f" * 64), at=3.0, actor="t")
    assert (done.version.state, done.version.evaluation, done.is_new) == (BuildState.RECEIVED, "f" * 64, True)
    assert not catalog.results(V1), "a recipe that failed is not done"


def made_id() -> str:
    return "m@1"


def test_disabling_a_variant_is_remembered_with_its_reason(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    _build(catalog, made)
    assert catalog.set_variant_state("m.v1.fp32", VariantState.DISABLED, "slow", at=1.0, actor="t")
    assert not catalog.set_variant_state("m.v1.fp32", VariantState.DISABLED, "slow", at=1.0, actor="t")
    variant = catalog.variant("m.v1.fp32")
    assert variant is not None
    assert (variant.state, variant.reason) == (VariantState.DISABLED, "slow")


def test_every_write_is_audited_with_who_and_when(
    catalog: Catalog, registration: MakeRegistration, made: MakeResult
) -> None:
    _register(catalog, registration())
    _build(catalog, made)
    catalog.switch("m", 1, at=4.0)
    catalog.set_variant_state("m.v1.fp32", VariantState.DISABLED, "slow", at=5.0, actor="alice")
    catalog.retire_model("m", at=6.0, actor="bob")
    found = [(row.action, row.subject, row.actor) for row in reversed(catalog.audit_log())]
    assert found == [
        ("task.create", "digits", "t"),
        ("version.register", "m@1", "t"),
        ("version.ready", "m@1", "registrar"),
        ("model.switch", "m", "registrar"),
        ("variant.disabled", "m.v1.fp32", "alice"),
        ("model.unregister", "m", "bob"),
    ]


def test_the_revision_grows_with_what_is_registered_and_not_with_journals(
    catalog: Catalog, registration: MakeRegistration
) -> None:
    before = catalog.revision()
    _register(catalog, registration())
    after = catalog.revision()
    assert after > before
    catalog.claim_key("k", "f" * 64, at=1.0)
    assert catalog.revision() == after


def test_an_idempotency_key_stands_for_one_request_for_a_day(catalog: Catalog) -> None:
    assert catalog.claim_key("k", "a" * 64, at=0.0) is None
    assert catalog.claim_key("k", "a" * 64, at=1.0) is None, "claimed, but never answered: it must be done"
    catalog.keep_answer("k", "done")
    assert catalog.claim_key("k", "a" * 64, at=2.0) == "done"
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        catalog.claim_key("k", "b" * 64, at=3.0)
    assert catalog.claim_key("k", "b" * 64, at=100_000.0) is None


def test_threads_that_register_one_file_at_once_make_one_version(
    tmp_path: Path, registration: MakeRegistration
) -> None:
    url = f"sqlite:///{tmp_path}/many.db"
    Catalog.open(url).close()
    start = threading.Barrier(6)

    def register(_: int) -> tuple[int, bool]:
        catalog = Catalog.open(url)
        start.wait()
        try:
            try:
                done = catalog.register(registration(), at=1.0, actor="t")
            except TaskAppearedError:
                done = catalog.register(registration(is_task_known=True), at=1.0, actor="t")
            return done.version.number, done.is_new
        finally:
            catalog.close()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(register, range(6)))
    assert sorted(found) == [(1, False)] * 5 + [(1, True)]


def _decision(number: int, outcome: str = "saturated") -> Decision:
    return Decision(
        f"d-{number}", f"r-{number}", f"2026-01-01T00:00:{number:02}.000Z", "digits", Level.TASK, TaskName("digits"),  # type: ignore[arg-type]
        "slo", {"accuracy_min": 0.9}, outcome, "full",
    )  # fmt: skip


def test_decisions_are_found_by_either_id_newest_first_and_pruned(catalog: Catalog) -> None:
    catalog.write_decisions([_decision(n) for n in range(10)])
    assert catalog.decision("d-3") == catalog.decision("r-3") == _decision(3)
    assert catalog.decision("x") is None
    assert [d.id for d in catalog.recent_decisions(2)] == ["d-9", "d-8"]
    assert catalog.prune_decisions(4) == 6
    assert catalog.decision("d-5") is None
    assert catalog.prune_decisions(4) == 0


def test_a_decision_written_twice_keeps_its_last_word(catalog: Catalog) -> None:
    catalog.write_decisions([_decision(1)])
    catalog.write_decisions([_decision(1, "answered")])
    found = catalog.decision("d-1")
    assert found is not None
    assert found.outcome == "answered"
