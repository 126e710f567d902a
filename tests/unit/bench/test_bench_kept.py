"""What is kept of the answers, and the accuracy that it gives: a row that was asked again is no further evidence."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infaas.bench import rest
from infaas.bench.journal import Journal
from infaas.bench.kept import REPLY_BYTES, KeptAnswers
from infaas.bench.protocol import Protocol
from infaas.bench.queries import Rows, scorer
from infaas.bench.reply import OK, Reply
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.metrics import load_metric
from infaas.metrics_intervals import wilson_interval

OUTPUT = TensorSpec("y", Datatype.INT64, (-1,))


def answer(*labels: int) -> Reply:
    head = b'{"outputs":[{"name":"y","datatype":"INT64","shape":[%d],"data":%s}]}'
    return Reply(OK, False, {}, head % (len(labels), str(list(labels)).encode()))


def test_a_long_run_keeps_one_answer_for_each_distinct_query_and_set() -> None:
    kept = KeptAnswers(slots=10)
    for number in range(2_000):
        kept.offer(number, number % 2, answer(number))
    assert [sorted(kept.of(mix)) for mix in (0, 1, None)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9], list(range(10))]
    for slot, reply in kept.of(None).items():
        (label,) = rest.outputs_of(reply)["y"]
        assert label % 10 == slot


def test_the_answer_that_is_kept_is_any_of_those_that_came_with_the_same_chance() -> None:
    """Of thirty answers a and ten b, three in four that are kept are a, and so over all sets where b had its own."""
    one_set: Counter[bytes] = Counter()
    all_sets: Counter[bytes] = Counter()
    for seed in range(1_000):
        kept, split = KeptAnswers(1, seed=seed), KeptAnswers(1, seed=seed)
        for number in range(40):
            reply = Reply(OK, False, {}, b"a" if number < 30 else b"b")
            kept.offer(number, 0, reply)
            split.offer(number, int(number >= 30), reply)
        one_set[kept.of(0)[0].content] += 1
        all_sets[split.of(None)[0].content] += 1
    for found in (one_set, all_sets):
        assert 690 < found[b"a"] < 810
        assert sum(found.values()) == 1_000


def test_answers_beyond_the_bytes_that_may_be_kept_are_left_out_and_counted() -> None:
    large = Reply(OK, False, {}, bytes(1_000))
    kept = KeptAnswers(slots=100, most_bytes=3 * (REPLY_BYTES + 1_000))
    for number in range(1_000):
        kept.offer(number, 0, large)
    assert sorted(kept.of(0)) == [0, 1, 2]
    assert kept.unkept == 97


def test_only_good_answers_are_offered_for_keeping() -> None:
    journal = Journal(KeptAnswers(slots=8))
    journal.add(4, 0, 0.0, 0.0, 0.1, Reply(OK, False, {}, b"x"))
    journal.add(5, 0, 0.0, 0.0, 0.1, Reply("saturated"))
    assert journal.kept is not None
    assert set(journal.kept.of(0)) == {4}


@pytest.mark.parametrize(("batch", "count"), [(1, 8), (3, 8), (20, 8)], ids=["rows", "last-wraps", "rows-twice"])
def test_accuracy_is_over_distinct_rows_however_often_they_were_asked(batch: int, count: int) -> None:
    """Six of eight labels are right. Asked a hundred times, that is still eight rows and their interval."""
    labels = np.arange(count)
    rows = Rows({"x": np.arange(count).reshape(-1, 1)}, batch, {"label": np.where(labels < 6, labels, 77)})
    kept = KeptAnswers(rows.slots)
    for number in range(100 * rows.slots):
        kept.offer(number, 0, answer(*rows.query(number)["x"].ravel().tolist()))
    found = scorer(rows, kept, Protocol.REST, load_metric("accuracy"), [OUTPUT])(0)
    assert found is not None
    assert (found.value, found.rows) == (0.75, 8)
    assert (found.low, found.high) == wilson_interval(6, 8)
