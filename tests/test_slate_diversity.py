"""MMR and DPP against their definitions, and what they do to a slate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.slate.specs import DPP, MMR, Cap, Pin, RuleSpec
from tests.slate_world import Shelf, films

nan = float("nan")


def similarities(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """All similarities at once: (1 + cosine) / 2; 0 to a vector of zeros, 1 to oneself."""
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)[:, None]
    similar = np.where(np.outer(lengths, lengths) > 0, 0.5 + 0.5 * (unit @ unit.T), 0.0)
    np.fill_diagonal(similar, 1.0)
    return similar


def jaccard(rows: list[list[str]]) -> NDArray[np.float64]:
    """The overlap of every two lists."""
    return np.array(
        [
            [
                1.0 if a == b else len(set(one) & set(other)) / max(len(set(one) | set(other)), 1)
                for b, other in enumerate(rows)
            ]
            for a, one in enumerate(rows)
        ]
    )


def relevance(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.ones(len(scores))


def gain_of(
    rule: MMR | DPP, scores: NDArray[np.float64], similar: NDArray[np.float64], above: list[int], one: int
) -> float:
    """What a candidate adds to a slate by the definition, from nothing but matrices."""
    wanted = rule.trade_off * relevance(scores)[one]
    if isinstance(rule, MMR):
        return float(wanted - (1 - rule.trade_off) * max((similar[one, other] for other in above), default=0.0))
    grown, held = [*above, one], np.linalg.slogdet(similar[np.ix_(above, above)])[1] if above else 0.0
    added = np.linalg.slogdet(similar[np.ix_(grown, grown)])[1] - held
    return float(wanted + (1 - rule.trade_off) * max(added, np.log(1e-6)))


def differs(similar: NDArray[np.float64], above: list[int]) -> bool:
    """Whether items differ enough for determinants to be told from the noise of the arithmetic."""
    return not above or float(np.linalg.eigvalsh(similar[np.ix_(above, above)])[0]) > 1e-3


@given(
    kind=st.sampled_from([MMR, DPP]),
    trade_off=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    count=st.integers(2, 9),
    k=st.integers(1, 9),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_each_place_goes_to_the_greatest_gain_by_the_definition(
    kind: type[MMR | DPP], trade_off: float, count: int, k: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    scores, vectors = draw.normal(size=count), draw.normal(size=(count, 12)).astype(np.float32)
    vectors[draw.random(count) < 0.15] = 0
    rule, similar = kind("towers", trade_off), similarities(vectors)
    shown = Shelf([rule], films([{}] * count), vectors).slate(scores.tolist(), k)
    for place, one in enumerate(shown):
        if not differs(similar, shown[:place]):
            break
        others = [other for other in range(count) if other not in shown[:place]]
        gains = {other: gain_of(rule, scores, similar, shown[:place], other) for other in others}
        assert gains[one] >= max(gains.values()) - 2e-4


genres = st.lists(st.lists(st.sampled_from(["drama", "war", "comedy", "noir"]), max_size=3, unique=True), max_size=8)


@given(kind=st.sampled_from([MMR, DPP]), rows=genres, seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_without_vectors_the_overlap_of_an_attribute_is_the_similarity(
    kind: type[MMR | DPP], rows: list[list[str]], seed: int
) -> None:
    scores = np.random.default_rng(seed).normal(size=len(rows))
    rule, similar = kind("genres", 0.4), jaccard(rows)
    shown = Shelf([rule], films([{"genres": row} for row in rows])).slate(scores.tolist(), 5)
    for place, one in enumerate(shown):
        if not differs(similar, shown[:place]):
            break
        others = [other for other in range(len(rows)) if other not in shown[:place]]
        gains = {other: gain_of(rule, scores, similar, shown[:place], other) for other in others}
        assert gains[one] >= max(gains.values()) - 1e-6


@pytest.mark.parametrize("kind", [MMR, DPP])
def test_diversity_raises_the_distance_within_slates_at_a_bounded_loss_of_relevance(kind: type[MMR | DPP]) -> None:
    draw, k, count = np.random.default_rng(1), 10, 150
    distance: dict[float, list[float]] = {1.0: [], 0.8: [], 0.5: []}
    relevant: dict[float, list[float]] = {trade_off: [] for trade_off in distance}
    shelves = films([{}] * count)
    for _ in range(30):
        centres = draw.normal(size=(8, 16))
        vectors = (centres[draw.integers(0, 8, count)] + 0.3 * draw.normal(size=(count, 16))).astype(np.float32)
        scores = vectors @ draw.normal(size=16) + 0.5 * draw.normal(size=count)
        similar = similarities(vectors)
        for trade_off in distance:
            shown = Shelf([kind("towers", trade_off)], shelves, vectors).slate(scores.tolist(), k)
            distance[trade_off].append(1 - (similar[np.ix_(shown, shown)].sum() - k) / (k * (k - 1)))
            relevant[trade_off].append(relevance(scores)[shown].mean())
    mean = {name: np.mean(values) for name, values in distance.items()}
    kept = {name: np.mean(values) / np.mean(relevant[1.0]) for name, values in relevant.items()}
    assert mean[0.5] > mean[0.8] > 1.05 * mean[1.0]
    assert kept[0.8] > 0.85
    assert 0.6 < kept[0.5] < kept[0.8] < 1.0


@pytest.mark.parametrize("kind", [MMR, DPP])
def test_twins_of_what_is_shown_come_last_even_where_there_is_nothing_else(kind: type[MMR | DPP]) -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    shelf = Shelf([kind("towers", 0.2)], films([{}] * 5), vectors)
    assert shelf.slate([5.0, 4.9, 4.8, 4.0, 3.9], 5) == [0, 4, 3, 1, 2]
    twins = Shelf([kind("towers", 0.5)], films([{}] * 6), np.ones((6, 2), np.float32))
    assert twins.slate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("kind", [MMR, DPP])
def test_what_has_no_score_or_stands_behind_the_window_counts_by_relevance_alone(kind: type[MMR | DPP]) -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[1] = vectors[0]
    scores = [6.0, 5.9, 5.8, nan, 2.0, 1.0]
    assert Shelf([kind("towers", 0.3, among=3)], films([{}] * 6), vectors).slate(scores, 6) == [0, 2, 1, 4, 5, 3]
    assert Shelf([kind("towers", 0.5, among=100)], films([{}] * 6), vectors).slate([nan] * 6, 3) == [0, 1, 2]


@pytest.mark.parametrize("kind", [MMR, DPP])
def test_diversity_knows_what_is_pinned_and_keeps_to_caps(kind: type[MMR | DPP]) -> None:
    rows = [{"creator": "a"}, {"creator": "b"}, {"creator": "b"}, {"creator": "c"}, {"creator": "d"}]
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0.1], [1, 0, 0]], np.float32)
    rules: list[RuleSpec] = [Pin(items=("f4",)), kind("towers", 0.4), Cap("creator", 1)]
    assert Shelf(rules, films(rows), vectors).slate([5.0, 4.8, 4.7, 4.6, 0.0], 3) == [4, 1, 0 if kind is MMR else 3]
    assert Shelf(rules[:2], films(rows), vectors).slate([5.0, 4.8, 4.7, 4.6, 0.0], 3) == [4, 1, 2]
    behind_the_window: list[RuleSpec] = [rules[0], kind("towers", 0.4, among=4)]
    assert Shelf(behind_the_window, films(rows), vectors).slate([5.0, 4.8, 4.7, 4.4, 0.0], 3) == [4, 1, 2]


def test_a_release_without_the_vectors_serves_by_relevance_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    decision = Shelf([MMR("towers")], films([{}] * 3)).decide([1.0, 3.0, 2.0], 3, explain=True)
    assert decision.order.tolist() == [1, 2, 0]
    assert decision.account == {"mmr_towers": {"unused": "this release has no item vectors of 'towers'"}}
    assert "mmr_towers is not used: this release has no item vectors of 'towers'" in caplog.text


def test_unknown_items_of_the_callers_own_are_like_nothing() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.1]], np.float32)
    shelf = Shelf([MMR("towers", 0.5)], films([{}] * 2), vectors)
    assert shelf.slate([3.0, 2.2, 2.0], 3, items=("f0", "f1", "new")) == [0, 2, 1]
