"""The index against brute force, and what it does with little, with nothing and with damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.retrieval.vectors import costs
from shortlist.retrieval.vectors.index import CODES, FACTS, VECTORS, WEIGH, Among, Index, Vectors
from shortlist.retrieval.vectors.ladder import FACTORS, LADDER, build_index, climb, recall_of
from shortlist.retrieval.vectors.order import greatest


def clustered(n: int, dimensions: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, dimensions), dtype=np.float32)
    vectors = centres[rng.integers(0, 50, n)] + rng.standard_normal((n, dimensions), dtype=np.float32)
    normalised: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def brute_force(vectors: Vectors, queries: Vectors, k: int) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def coded() -> Index:
    return build_index(clustered(20_000, 48), k=50, exact_below=1_000)


NEAR = [0.0, -0.0, *(sign * (0.5 + step * 2.0**-24) for sign in (1, -1) for step in (0, 1, 2, 2**11, 2**12))]
"""Numbers that are equal, or differ in one digit of the order alone."""


@given(
    st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from(NEAR), max_size=60),
    st.integers(0, 70),
    st.integers(1, 80),
)
def test_the_greatest_products_come_first_and_ties_in_order_of_place(some: list[float], k: int, times: int) -> None:
    products = np.array(some * times, np.float32)
    assert greatest(products, k).tolist() == np.argsort(-products, kind="stable")[:k].tolist()


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 40), st.integers(0, 1000))
def test_exact_search_is_brute_force_whatever_the_sizes(n: int, dimensions: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.standard_normal((rows, dimensions), dtype=np.float32) for rows in (n, 3))
    index = build_index(vectors, k=10)
    rows, scores = index.search(queries, k)
    assert rows.shape == scores.shape == (3, min(k, n))
    assert rows.tolist() == brute_force(vectors, queries, k).tolist()
    assert (index.rung, index.recall, index.reached) == ("exact", 1.0, True)


def test_codes_reach_the_recall_that_was_asked_for(coded: Index) -> None:
    vectors, queries = clustered(20_000, 48), clustered(20_200, 48)[-200:]
    assert coded.rung.rsplit(", refine")[0] in {f"PCA{directions}x4" for directions in LADDER}
    assert coded.recall >= 0.99
    assert coded.reached
    found, scores = coded.search(queries, 50)
    true = brute_force(vectors, queries, 50)
    assert np.mean([np.isin(row, own).mean() for row, own in zip(found, true, strict=True)]) > 0.97
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, found.astype(np.int64), axis=1), atol=2e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_one_query_and_a_batch_of_them_find_the_same(coded: Index) -> None:
    queries = clustered(5, 48, seed=2)
    rows, scores = coded.search(queries, 20)
    for number, query in enumerate(queries):
        one_row, one_score = coded.search(query, 20)
        assert one_row.shape == (20,)
        assert one_row.tolist() == rows[number].tolist()
        assert np.allclose(one_score, scores[number], atol=1e-6)


@pytest.mark.parametrize("k", [19_999, 20_000, 50_000, 9_000, 1, 0])
def test_k_near_and_beyond_the_number_of_vectors_gives_distinct_rows(coded: Index, k: int) -> None:
    rows, _ = coded.search(clustered(1, 48, seed=3)[0], k)
    assert len(rows) == min(k, 20_000) == len(set(rows.tolist()))
    assert not len(rows) or rows.min() >= 0


def test_a_higher_target_is_never_answered_with_less_recall() -> None:
    vectors = clustered(5_000, 32)
    recalls = [build_index(vectors, target=target, k=20, exact_below=0).recall for target in (0.5, 0.99)]
    assert recalls[0] >= 0.5
    assert recalls[1] >= 0.99
    assert recalls == sorted(recalls)


def test_a_target_that_no_rung_reaches_leaves_the_best_and_says_so() -> None:
    rng = np.random.default_rng(0)
    index = build_index(rng.standard_normal((2_000, 64), dtype=np.float32), target=1.01, k=50, exact_below=0)
    assert not index.reached
    assert 0 < index.recall <= 1
    assert index.factor == FACTORS[-1]


def test_the_least_refining_that_is_enough_is_found() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, 256), dtype=np.float32) for n in (5_000, 50))
    exact = Index.exact(vectors)
    worst = exact.search(queries, 20)[1][:, -1:]
    by_target = {
        target: climb(128, vectors, vectors, queries, worst, 20, target, seed=0) for target in (0.1, 0.7, 0.8, 2.0)
    }
    assert by_target[0.1].factor == FACTORS[0]
    assert by_target[2.0].factor == FACTORS[-1]
    for target in (0.7, 0.8):
        rung = by_target[target]
        assert target <= rung.surely < rung.recall
        assert rung.factor > FACTORS[0]
        less = Index(vectors, rung.codes, FACTORS[FACTORS.index(rung.factor) - 1])
        assert recall_of(less.search(queries, 20)[1], worst)[1] < target


def found_among(index: Index, queries: Vectors, k: int, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """The recall of a search among some rows; nothing else is found, exact products fall along the answer."""
    rows, scores = index.search(queries, k, Among.mask(mask))
    assert rows.shape == scores.shape == (len(queries), min(k, int(mask.sum())))
    assert mask[rows].all()
    assert (np.diff(scores, axis=1) <= 0).all()
    own = np.flatnonzero(mask)
    true = own[brute_force(index.vectors_of(own.astype(np.int32)), queries, k)]
    assert all(len(set(row.tolist())) == len(row) for row in rows)
    return float(np.mean([np.isin(right, row).mean() for row, right in zip(rows, true, strict=True)]))


@pytest.mark.parametrize("way", ["cheaper", "codes", "exact"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_among_any_share_of_the_rows_as_many_are_found_as_among_all(
    coded: Index, monkeypatch: pytest.MonkeyPatch, share: float, way: str
) -> None:
    if way != "cheaper":
        monkeypatch.setattr(costs, "compare", lambda *_: float("inf") if way == "codes" else 0.0)
    queries = clustered(20_100, 48)[-100:]
    mask = np.random.default_rng(1).random(len(coded)) < share
    assert found_among(coded, queries, 50, mask) >= (1.0 if way == "exact" else 0.98)


@pytest.mark.parametrize("way", ["cheaper", "codes"])
def test_what_may_be_found_is_found_where_it_is_far_from_the_query(
    coded: Index, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "codes":
        monkeypatch.setattr(costs, "compare", lambda *_: float("inf"))
    for query in clustered(20_003, 48)[-3:]:
        products = coded.vectors @ query
        assert found_among(coded, query[None], 50, products < np.quantile(products, 0.5)) >= 0.98


def test_few_rows_are_compared_and_many_are_found_by_their_codes() -> None:
    """A million vectors of 256 dimensions, 500 of them wanted: what the model of costs makes of it."""
    index = Index(np.zeros((1, 256), np.float32), factor=10, facts={"parts": 64})
    index._n = 1_000_000
    for share, by_codes in ((0.001, False), (0.01, False), (0.1, True), (0.5, True), (1.0, True)):
        cheaper = index.cost_by_codes(share, 500 * 10) < costs.compare(int(1_000_000 * share), 256)
        assert cheaper == by_codes, share


def test_among_nothing_or_less_than_was_asked_for_is_ordinary(coded: Index) -> None:
    query = clustered(1, 48)[0]
    nothing = np.zeros(len(coded), np.bool_)
    assert coded.search(query, 5, Among.mask(nothing))[0].shape == (0,)
    assert coded.search(query[None], 5, Among.mask(nothing))[0].shape == (1, 0)
    three = nothing.copy()
    three[[3, 8, 7]] = True
    assert sorted(coded.search(query, 5, Among.mask(three))[0].tolist()) == [3, 7, 8]
    assert coded.search(query, 0, Among.mask(three))[0].shape == (0,)


def test_few_directions_that_matter_need_few_bits() -> None:
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((60_000, 16), dtype=np.float32) @ rng.standard_normal((16, 128), dtype=np.float32)
    low_rank += 0.1 * rng.standard_normal(low_rank.shape, dtype=np.float32)
    index = build_index(low_rank, k=50)
    assert index.rung.startswith("PCA32x4")
    assert index.reached


def test_dimensions_that_no_code_divides_are_padded() -> None:
    vectors = clustered(4_000, 50)
    index = build_index(vectors, k=20, exact_below=0)
    assert index.reached
    assert index.search(vectors[:3], 1)[0].ravel().tolist() == [0, 1, 2]


def test_vectors_that_are_all_alike_are_found_nevertheless() -> None:
    index = build_index(np.ones((3_000, 16), np.float32), k=20, exact_below=0)
    rows, _ = index.search(np.ones(16, np.float32), 20)
    assert len(set(rows.tolist())) == 20
    assert rows.min() >= 0


def test_what_is_not_finite_is_refused() -> None:
    vectors = clustered(10, 4)
    vectors[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        build_index(vectors)


def test_no_vectors_at_all_find_nothing(tmp_path: Path) -> None:
    index = build_index(np.empty((0, 8), np.float32))
    assert index.search(np.ones(8, np.float32), 5)[0].shape == (0,)
    index.save(tmp_path)
    assert len(Index.load(tmp_path)) == 0


def test_the_same_vectors_and_seed_give_the_same_bytes(coded: Index, tmp_path: Path) -> None:
    again = build_index(clustered(20_000, 48), k=50, exact_below=1_000)
    coded.save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in (VECTORS, CODES, WEIGH, FACTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_was_saved_is_loaded(coded: Index, tmp_path: Path) -> None:
    coded.save(tmp_path)
    loaded = Index.load(tmp_path)
    queries = clustered(4, 48, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.search(queries, 9), coded.search(queries, 9), strict=True))
    assert np.array_equal(loaded.vectors, coded.vectors)
    assert (loaded.rung, loaded.recall, loaded.memory_bytes) == (coded.rung, coded.recall, coded.memory_bytes)
    assert loaded.memory_bytes >= 20_000 * 48 * 2


@pytest.mark.parametrize("name", [VECTORS, CODES, WEIGH, FACTS])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "empty"])
def test_a_damaged_file_is_refused_by_name(coded: Index, tmp_path: Path, name: str, damage: str) -> None:
    coded.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    changed = (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 0x55]) + content[len(content) // 2 + 1 :]
    )
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes({"cut": content[:-100], "changed": changed, "empty": b""}[damage])
    with pytest.raises(ValueError, match=str(tmp_path)):
        Index.load(tmp_path)


def test_an_index_of_another_version_is_refused(coded: Index, tmp_path: Path) -> None:
    coded.save(tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    facts["crc32"]["codes.faiss"] = facts["crc32"].pop(CODES)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"codes\.faiss is of another version's index; train again"):
        Index.load(tmp_path)


@pytest.mark.parametrize(("factor", "kept"), [(1.0, np.float16), (1e6, np.float32), (1e-6, np.float32)])
def test_vectors_are_halved_where_halves_hold_them(factor: float, kept: type) -> None:
    vectors = clustered(4_000, 32) * np.float32(factor)
    index = build_index(vectors, k=20, exact_below=0)
    assert index.vectors.dtype == kept
    assert index.reached
    rows = np.array([3, 3_999, 0, 7], np.int32)
    query = clustered(1, 32, seed=5)[0]
    assert np.allclose(index.vectors_of(rows), vectors[rows], rtol=1e-3, atol=1e-4 * factor)
    assert np.allclose(index.products(query, rows), index.vectors_of(rows) @ query, atol=1e-6 * factor)


def test_what_halves_find_is_judged_by_exact_products() -> None:
    """Halves of coarse steps put others in front: that is less recall, whatever products the halves themselves have."""
    rng = np.random.default_rng(0)
    vectors = np.float32(1.0) + np.float32(4e-4) * rng.standard_normal((3_000, 16), dtype=np.float32)
    assert build_index(vectors, k=20, exact_below=0, target=0.99).recall < 0.9
