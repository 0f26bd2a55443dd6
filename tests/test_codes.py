"""Codes against arithmetic on the same numbers, whatever the sizes, on this processor and on a plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.retrieval.vectors import codes as codes_module
from shortlist.retrieval.vectors.codes import Code, Codes, Rows, Vectors, aligned, blocks_of
from shortlist.retrieval.vectors.scan import BLOCK, MOST, nth_greatest, scan
from tests.processors import printed_on_a_plain_processor


def drawn(n: int, d: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def codes_of(vectors: Vectors, dimensions: int, part: int = BLOCK) -> tuple[Code, Codes]:
    code = Code.learn(vectors, dimensions, seed=0)
    return code, Codes.of(code, (vectors[start : start + part] for start in range(0, len(vectors), part)))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 37), st.integers(1, 3), st.integers(0, 99))
def test_the_kernel_sums_what_the_numbers_say(n: int, dimensions: int, step: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 16, (n, dimensions), dtype=np.uint8)
    weights = np.zeros(-(-dimensions // 4) * 4, np.int8)
    weights[:dimensions] = rng.integers(-50, 51, dimensions)
    true = numbers.astype(np.int64) @ weights[:dimensions].astype(np.int64)
    looked = np.flatnonzero(np.arange(n) // BLOCK % step == 0)
    least = int(np.median(true))
    rows, scores = np.empty(n + BLOCK, np.int32), np.empty(n + BLOCK, np.int16)
    found = scan(aligned(blocks_of(numbers)), step, n, weights.view(np.int32), least, rows, scores)
    right = looked[true[looked] >= least]
    assert rows[:found].tolist() == right.tolist()
    assert scores[:found].tolist() == true[right].tolist()


@given(st.lists(st.integers(-MOST - 1, MOST) | st.integers(-3, 3), min_size=1, max_size=80), st.data())
def test_the_nth_greatest_sum_is_that_of_sorting(sums: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(sums)))
    assert nth_greatest(np.array(sums, np.int16), n) == sorted(sums, reverse=True)[n - 1]


def test_where_there_is_no_room_the_kernel_says_so() -> None:
    held, weights = aligned(blocks_of(np.zeros((200, 4), np.uint8))), np.zeros(1, np.int32)
    rows, scores = np.empty(100, np.int32), np.empty(100, np.int16)
    assert scan(held, 1, 200, weights, 0, rows, scores) == -1


def are_the_best(rows: Rows, sums: NDArray[np.int64], k: int) -> bool:
    """Whether these are the rows of all sums from some on, in order, and at least k."""
    least = sums[rows].min(initial=2**15)
    return len(rows) >= min(k, len(sums)) and rows.tolist() == np.flatnonzero(sums >= least).tolist()


def sums_of(code: Code, codes: Codes, vectors: Vectors, query: Vectors) -> NDArray[np.int64]:
    weights = codes._weights(query).view(np.int8)[: len(codes.weigh)].astype(np.int64)
    return code.numbers(vectors).astype(np.int64) @ weights


@settings(deadline=None)
@given(st.integers(1, 2_000), st.integers(1, 12), st.integers(0, 2_500), st.integers(0, 99))
def test_the_rows_of_the_greatest_sums_are_found(n: int, d: int, k: int, seed: int) -> None:
    vectors, query = drawn(n, d, seed), drawn(1, d, seed + 1)[0]
    code, codes = codes_of(vectors, d)
    assert are_the_best(codes.search(query, k), sums_of(code, codes, vectors, query), k)


def test_many_vectors_are_found_by_a_sample_of_them_and_few_beyond_what_is_wanted() -> None:
    vectors = drawn(100_000, 8)
    order = np.argsort(vectors[:, 0], kind="stable")
    code, codes = codes_of(vectors[order], 8, part=640)  # sorted, so that a sample of neighbours would mislead
    for query in (*drawn(5, 8, seed=3), np.eye(8, dtype=np.float32)[0]):
        sums = sums_of(code, codes, vectors[order], query)
        for k in (1, 500, 30_000, 100_000):
            rows = codes.search(query, k)
            assert are_the_best(rows, sums, k)
            assert k < 500 or len(rows) < 2 * k


def test_what_a_sample_promised_too_much_of_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "CAUTION", -1.0)
    monkeypatch.setattr(codes_module, "SAMPLES", (64, 8))
    vectors = drawn(60_000, 8)
    code, codes = codes_of(vectors, 8)
    looked: list[int] = []
    scanned = codes._scan

    def scan_noting(weights: NDArray[np.int32], step: int, least: int, room: int) -> tuple[Rows, NDArray[np.int16]]:
        looked.append(step)
        return scanned(weights, step, least, room)

    monkeypatch.setattr(codes, "_scan", scan_noting)
    for query in drawn(5, 8, seed=1):
        rows = codes.search(query, 500)
        assert are_the_best(rows, sums_of(code, codes, vectors, query), 500)
        assert len(rows) < 5_000
    assert looked.count(1) > 5  # all codes, more than once for some query


def test_all_directions_in_four_bits_say_nearly_what_the_vectors_say() -> None:
    vectors, queries = drawn(20_000, 24), drawn(20, 24, seed=1)
    _, codes = codes_of(vectors, 24)
    for query in queries:
        best = set(np.argsort(-(vectors @ query))[:100].tolist())
        assert len(best & set(codes.search(query, 300).tolist())) >= 97


def test_the_directions_that_matter_are_kept() -> None:
    vectors = drawn(5_000, 4) @ drawn(4, 32, seed=1) + np.float32(0.01) * drawn(5_000, 32, seed=2)
    code, codes = codes_of(vectors + np.float32(7.0), 4)  # far from the origin, which is no direction that matters
    centred = vectors - vectors.mean(axis=0)
    basis = np.linalg.qr(code.turn.T)[0]
    assert np.linalg.norm(centred - centred @ basis @ basis.T) < 0.05 * np.linalg.norm(centred)
    best = set(np.argsort(-(vectors @ vectors[0]))[:50].tolist())
    assert len(best & set(codes.search(vectors[0], 150).tolist())) >= 49


@pytest.mark.parametrize("dimensions", [2, 64, 256])
def test_no_sum_is_too_great_for_its_place(dimensions: int) -> None:
    codes = Codes(np.eye(dimensions, dtype=np.float32), blocks_of(np.zeros((1, dimensions), np.uint8)), 1)
    for query in (np.ones(dimensions), -np.ones(dimensions), np.eye(dimensions)[0], drawn(1, dimensions)[0]):
        weights = codes._weights(query.astype(np.float32)).view(np.int8).astype(np.int64)
        assert 15 * weights[weights > 0].sum() <= MOST
        assert 15 * weights[weights < 0].sum() >= -MOST
        assert np.abs(weights).max() >= min(127, MOST // 15 // dimensions - 8)  # and what there is room for is used


def test_a_query_that_is_zero_or_vectors_that_are_all_alike_find_them_all() -> None:
    _, codes = codes_of(drawn(1_000, 6), 6)
    assert codes.search(np.zeros(6, np.float32), 5).tolist() == list(range(1_000))
    _, alike = codes_of(np.ones((40_000, 6), np.float32), 6)
    assert alike.search(np.ones(6, np.float32), 5).tolist() == list(range(40_000))


def test_codes_of_other_vectors_are_refused() -> None:
    _, codes = codes_of(drawn(100, 6), 6)
    with pytest.raises(ValueError, match="no codes of 200 vectors in 6"):
        Codes(codes.weigh, codes.held, 200)


PLAIN = """
import numpy as np
from tests.test_codes import codes_of, drawn
from shortlist.retrieval.vectors.scan import has_byte_products
assert not has_byte_products()
vectors, query = drawn(3_000, 30), drawn(1, 30, seed=1)[0]
print(codes_of(vectors, 30)[1].search(query, 200).tolist())
"""


def test_a_processor_without_products_of_bytes_finds_the_same(tmp_path: Path) -> None:
    rows = codes_of(drawn(3_000, 30), 30)[1].search(drawn(1, 30, seed=1)[0], 200)
    assert printed_on_a_plain_processor(PLAIN, tmp_path) == str(rows.tolist())
