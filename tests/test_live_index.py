"""The index that is added to, changed and removed from, against brute force over what there is at that moment."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.retrieval.vectors.index import Among, Index, Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.retrieval.vectors.live_index import ROOM, LiveIndex

DIMENSIONS = 6


def drawn(n: int, seed: int = 0, dimensions: int = DIMENSIONS) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dimensions), dtype=np.float32)


class Truth:
    """Rows and their vectors, as a dictionary."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = dict(enumerate(vectors))
        self.gone: set[int] = set()

    def best(self, query: Vectors, k: int, among: set[int]) -> list[float]:
        """The products of the nearest: of several vectors that are alike any may be found."""
        products = [float(vector @ query) for row, vector in self.vectors.items() if row in among - self.gone]
        return sorted(products, reverse=True)[:k]


steps = st.lists(
    st.tuples(st.sampled_from(["add", "update", "remove"]), st.integers(1, 5), st.integers(0, 99)), max_size=12
)


@settings(max_examples=60)
@given(st.integers(0, 8), steps, st.integers(0, 20))
def test_what_is_found_is_what_there_is(n: int, changes: list[tuple[str, int, int]], k: int) -> None:
    live, truth = LiveIndex(Index.exact(drawn(n))), Truth(drawn(n))
    for what, count, seed in changes:
        rows = np.random.default_rng(seed).permutation(len(live))[:count].astype(np.int32)
        vectors = drawn(count if what == "add" else len(rows), seed + 1)
        if what == "add":
            rows = live.add(vectors)
        elif what == "update":
            live.update(rows, vectors)
        else:
            live.remove(rows)
            truth.gone |= set(rows.tolist())
        if what != "remove":
            truth.gone -= set(rows.tolist())
            truth.vectors.update(zip(rows.tolist(), vectors, strict=True))
        everything = np.arange(len(live), dtype=np.int32)
        assert np.array_equal(
            live.vectors_of(everything),
            np.stack([truth.vectors[row] for row in range(len(live))]) if len(live) else np.empty((0, DIMENSIONS)),
        )
        assert np.flatnonzero(~live.finds(everything)).tolist() == sorted(truth.gone)
    queries = drawn(3, 7)
    mask = np.random.default_rng(5).random(len(live)) < 0.5
    for among, allowed in ((None, set(truth.vectors)), (Among.mask(mask), set(np.flatnonzero(mask).tolist()))):
        rows, scores = live.search(queries, k, among)
        for query, one, score in zip(queries, rows, scores, strict=True):
            assert set(one.tolist()) <= allowed - truth.gone
            assert len(set(one.tolist())) == len(one)
            assert np.allclose(score, truth.best(query, k, allowed), atol=1e-5)
            assert np.allclose(score, [truth.vectors[row] @ query for row in one.tolist()], atol=1e-5)
            assert live.search(query, k, among)[0].tolist() == one.tolist()


def test_codes_stand_aside_for_what_was_removed_and_changed() -> None:
    vectors = drawn(4_000, dimensions=32)
    live = LiveIndex(build_index(vectors, k=20, exact_below=0))
    assert live.index.codes is not None
    query = vectors[0] / np.linalg.norm(vectors[0])
    first = live.search(query, 20)[0]
    live.remove(first[:10])
    live.update(first[10:12], np.stack([2 * query, 3 * query]) * 10)
    rows = live.search(query, 20)[0]
    assert rows[:2].tolist() == [first[11], first[10]]
    assert not np.isin(first[:10], rows).any()
    assert np.isin(first[12:], rows).all()


def test_a_block_grows_and_forgets_what_was_superseded() -> None:
    live = LiveIndex(Index.exact(drawn(3)))
    for seed in range(40):
        live.update(np.arange(3, dtype=np.int32), drawn(3, seed))
        live.add(drawn(1, seed + 100))
    assert live.beside == 43
    assert len(live._state.block) <= ROOM
    added = live.add(drawn(5 * ROOM, 9))
    assert added.tolist() == list(range(43, 43 + 5 * ROOM))
    assert np.array_equal(live.vectors_of(added), drawn(5 * ROOM, 9))
    assert np.array_equal(live.vectors_of(np.arange(3, dtype=np.int32)), drawn(3, 39))
    live.remove(added)
    assert live.beside == 43


@pytest.mark.parametrize("bad", ["shape", "nan"])
def test_vectors_that_are_none_are_refused_and_change_nothing(bad: str) -> None:
    live = LiveIndex(Index.exact(drawn(3)))
    vectors = drawn(2, dimensions=DIMENSIONS + (bad == "shape"))
    if bad == "nan":
        vectors[1, 2] = np.nan
    with pytest.raises(ValueError, match="no vectors of 2 rows"):
        live.add(vectors)
    with pytest.raises(ValueError, match="no vectors of 2 rows"):
        live.update(np.array([0, 1], np.int32), vectors)
    assert len(live) == 3
    assert live.finds(np.arange(3, dtype=np.int32)).all()


def test_searches_go_on_while_rows_come_and_go() -> None:
    """Every row that is never touched is found by every search with its own vector, and with the right product."""
    vectors = drawn(500)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    live, stop, wrong = LiveIndex(Index.exact(vectors)), threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            rows, scores = live.search(vectors[:10], 3)
            products = np.einsum("nd,nkd->nk", vectors[:10], live.vectors_of(rows.ravel()).reshape(10, 3, DIMENSIONS))
            if rows[:, 0].tolist() != list(range(10)) or not np.allclose(products[:, 0], scores[:, 0], atol=1e-5):
                wrong.append(rows)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(150):
        added = live.add(drawn(7, seed) * np.float32(0.1))
        live.update(np.arange(20, 60, dtype=np.int32), drawn(40, seed) * np.float32(0.1))
        live.remove(added[:3])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(live) == 500 + 7 * 150
