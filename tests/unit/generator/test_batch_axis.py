"""Where a reshape puts the batch."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_variant_generator.rebatch import checked_batches
from infaas_variant_generator.transform.dynamic_batch import batch_axis

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def test_a_leading_batch_stays_in_front() -> None:
    assert batch_axis((3, 4, 5), 0, (3, 20), 3) == 0
    assert batch_axis((1, 4, 5), 0, (1, 20), 1) == 0


def test_a_batch_that_is_merged_is_found_in_the_merged_axis() -> None:
    assert batch_axis((3, 4, 5), 0, (12, 5), 3) == 0
    assert batch_axis((7, 3, 5), 1, (21, 5), 3) == 0


def test_a_batch_behind_another_axis_is_found_there() -> None:
    assert batch_axis((7, 3, 10), 1, (7, 3, 2, 5), 3) == 1


def test_a_batch_that_fits_nowhere_is_found_nowhere() -> None:
    assert batch_axis((3, 4), 0, (4, 3), 3) is None


@settings(deadline=None)
@given(st.integers(1, 4), sizes, st.data())
def test_every_item_comes_out_as_if_it_were_alone(batch: int, inner: list[int], data: st.DataObject) -> None:
    """Whatever a leading batch's other dimensions are regrouped to, the target that is made up for it works for any
    number of items."""
    cut = data.draw(st.integers(0, len(inner)))
    after = (batch, prod(inner[:cut]), prod(inner[cut:]))
    axis = batch_axis((batch, *inner), 0, after, batch)
    assert axis == 0
    target = [-1 if index == axis else size for index, size in enumerate(after)]
    many = np.arange(6 * prod(inner)).reshape(6, *inner)
    assert all((many.reshape(target)[item] == many[item : item + 1].reshape(target)[0]).all() for item in range(6))


def test_single_items_the_old_size_and_the_largest_one_are_compared() -> None:
    assert checked_batches(1, 32) == (1, 2, 3, 32)
    assert checked_batches(4, 32) == (1, 2, 3, 4, 5, 32)
    assert checked_batches(4, 0) == (1, 2, 3, 4, 5)
