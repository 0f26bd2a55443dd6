"""The cut holds out the last positives, leaks nothing, and does not tear one moment apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.training.split import split_by_time


@given(st.lists(st.integers(0, 30), max_size=60))
def test_the_parts_follow_each_other_and_no_moment_is_torn(moments: list[int]) -> None:
    at = np.sort(np.array(moments, np.int64))
    position = np.arange(len(at)) * 3 + 5
    shuffled = np.random.default_rng(len(moments)).permutation(len(at))
    split = split_by_time(position[shuffled], at[shuffled], stop=1000)
    assert 0 <= split.sources <= split.rankers <= split.cut <= split.stop == 1000
    held_out = position >= split.cut
    if held_out.any() and not held_out.all() and split.cut > position[at == at[0]].max(initial=0):
        assert at[~held_out].max() < at[held_out].min()


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_a_fifth_is_held_out_and_rankers_have_their_share(count: int) -> None:
    position = np.arange(count)
    split = split_by_time(position, position * 1000, stop=count)
    assert (position >= split.cut).sum() == count // 5
    assert (position < split.sources).sum() == pytest.approx(0.6 * count, abs=1)
    assert ((position >= split.sources) & (position < split.rankers)).sum() == pytest.approx(0.14 * count, abs=1)


def test_a_log_without_order_in_time_is_cut_by_what_was_known() -> None:
    position, at = np.arange(10), np.arange(10)[::-1].copy()
    split = split_by_time(position, at, stop=10)
    assert split.cut == 8


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_positives_leave_parts_empty(count: int) -> None:
    split = split_by_time(np.arange(count), np.arange(count), stop=7)
    assert split.sources <= split.rankers <= split.cut <= 7


def test_one_single_moment_is_still_cut() -> None:
    split = split_by_time(np.arange(100), np.zeros(100, np.int64), stop=100)
    assert split.cut == 80
