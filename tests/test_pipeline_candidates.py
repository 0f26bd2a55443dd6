"""Columns of candidates: written once, taken and joined together."""

from __future__ import annotations

import numpy as np
import pytest

from shortlist.pipeline.candidates import NOTHING, Candidates


def some(*items: int) -> Candidates:
    return Candidates(np.array(items, np.int32))


def test_a_column_is_written_once_and_has_one_value_per_candidate() -> None:
    described = some(3, 5).describe({"price": np.array([1.0, 2.0])})
    with pytest.raises(KeyError, match="written already"):
        described.describe({"price": np.array([1.0, 2.0])})
    with pytest.raises(ValueError, match="1 values for 2 candidates"):
        described.describe({"age": np.array([1.0])})


def test_the_feature_block_is_written_once_and_fits() -> None:
    block = some(3, 5).with_matrix(("a",), np.array([[1.0, 2.0]]))
    with pytest.raises(KeyError, match="written already"):
        block.with_matrix(("a",), np.array([[1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"expected \(1, 2\)"):
        some(3, 5).with_matrix(("a",), np.array([[1.0]]))


def test_taking_keeps_everything_aligned() -> None:
    own = Candidates(np.array([4, -1, 6], np.int32), own=np.array([0, 1, 2], np.int32))
    full = own.describe({"x": np.array([0.0, 1.0, 2.0])}).with_matrix(("f",), np.array([[7.0, 8.0, 9.0]]))
    taken = full.take(np.array([2, 0]))
    assert taken.items.tolist() == [6, 4]
    assert taken.columns["x"].tolist() == [2.0, 0.0]
    assert taken.own is not None
    assert taken.own.tolist() == [2, 0]
    assert taken.matrix is not None
    assert taken.matrix.tolist() == [[9.0, 7.0]]
    assert full.take(np.array([False, True, False])).items.tolist() == [-1]


def test_joining_fills_what_one_side_lacks_with_nan() -> None:
    left = some(1).describe({"a": np.array([1.0])}).with_matrix(("f", "g"), np.array([[3.0], [4.0]]))
    right = some(2).describe({"b": np.array([2.0])})
    both = left.followed_by(right)
    assert both.items.tolist() == [1, 2]
    np.testing.assert_array_equal(both.columns["a"], [1.0, np.nan])
    np.testing.assert_array_equal(both.columns["b"], [np.nan, 2.0])
    np.testing.assert_array_equal(both.matrix, [[3.0, np.nan], [4.0, np.nan]])
    np.testing.assert_array_equal(right.followed_by(left).matrix, [[np.nan, 3.0], [np.nan, 4.0]])
    assert NOTHING.followed_by(left) is left
    assert left.followed_by(NOTHING) is left


def test_the_callers_own_items_and_retrieved_ones_do_not_mix() -> None:
    with pytest.raises(ValueError, match="do not mix"):
        Candidates(np.array([1], np.int32), own=np.array([0], np.int32)).followed_by(some(2))
