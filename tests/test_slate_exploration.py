"""Exploration: what is drawn, how often, and that its propensity says just that."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from shortlist.slate.exploration import uniform
from shortlist.slate.specs import DPP, MMR, Cap, Explore, Fairness, Pin, RuleSpec
from tests.slate_world import Shelf, films

nan = float("nan")
ROWS: list[dict[str, Any]] = [
    {"creator": "abcdefg"[number % 7], "genres": ["x"] * (number % 3 == 0)} for number in range(30)
]
SCORES = np.linspace(3.0, -1.0, 30).tolist()
REQUESTS = 4_000


def chi_square_limit(freedom: int) -> float:
    """What a chi-square statistic exceeds once in 10,000 times (Wilson and Hilferty, 1931)."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3)


RULES: dict[str, list[RuleSpec]] = {
    "one place, evenly": [Explore(1)],
    "two places by softmax": [Explore(2, temperature=0.3)],
    "few, among everything else": [MMR("genres", 0.5), Explore(3, most=9), Pin(items=("f20",), at=2)],
    "under caps": [Cap("creator", 1), Explore(2, temperature=0.7, most=30)],
    "under a cap on a list": [Cap("genres", 2), Fairness("creator", {"g": 0.2}), Explore(3, most=20)],
    "among one source": [DPP("genres", 0.5), Explore(2, among="fresh")],
    "among one source by softmax": [Cap("creator", 2), Explore(2, among="fresh", temperature=0.2)],
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_what_is_drawn_comes_as_often_as_its_propensity_says(rules: list[RuleSpec]) -> None:
    shelf, k = Shelf(rules, films(ROWS)), 6
    ranks = [float(place) if place >= 12 else nan for place in range(30)]
    counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
    said: dict[tuple[int, int], float] = {}
    for request in range(REQUESTS):
        decision = shelf.decide(SCORES, k, request=f"request-{request}", ranks=ranks)
        shown = decision.order[:k].tolist()
        assert len(set(shown)) == k
        for place, (one, propensity) in enumerate(zip(shown, decision.propensities.tolist(), strict=True)):
            assert said.setdefault((place, one), propensity) == propensity  # the same whatever else is drawn
            counts[place][one] += 1
    drawn_places = 0
    for place, found in counts.items():
        probabilities = np.array([said[place, one] for one in found])
        if len(found) == 1:
            assert probabilities.tolist() == [1.0]
            continue
        drawn_places += 1
        expected, seen = REQUESTS * probabilities, np.array(list(found.values()))
        rare = expected < 5
        assert probabilities.sum() > 1 - 5 * len(rare) / REQUESTS - 1e-9
        statistic = float(((seen - expected)[~rare] ** 2 / expected[~rare]).sum())
        assert statistic < chi_square_limit(max(int((~rare).sum()) - 1, 1)), f"place {place + 1}: {statistic}"
    explore = next(rule for rule in rules if isinstance(rule, Explore))
    assert drawn_places == explore.slots
    if explore.among and explore.temperature is None:
        assert min(one for place in (4, 5) for one in counts[place]) >= 12


def test_with_a_temperature_a_place_goes_to_the_source_where_that_costs_little() -> None:
    shelf, ranks = Shelf([Explore(1, among="fresh", temperature=0.05)], films(ROWS)), [nan] * 29 + [1.0]

    def share_of_fresh(score: float) -> float:
        scores = [*SCORES[:-1], score]
        drawn = [shelf.decide(scores, 4, request=f"r{number}", ranks=ranks) for number in range(400)]
        assert {int(decision.order[3]) for decision in drawn} <= {3, 29}
        return float(np.mean([decision.order[3] == 29 for decision in drawn]))

    assert share_of_fresh(-1.0) == 0.0
    assert 0.4 < share_of_fresh(SCORES[3]) < 0.6


def test_inverse_propensities_recover_the_mean_of_what_was_hardly_shown() -> None:
    shelf, k = Shelf([Explore(1, temperature=0.2)], films(ROWS)), 5
    draw, reward = np.random.default_rng(4), np.linspace(0.1, 0.9, 30)  # who is never shown is best
    weighted, plain = [], []
    for request in range(REQUESTS):
        decision = shelf.decide(SCORES, k, request=f"r{request}")
        one, propensity = int(decision.order[k - 1]), decision.propensities[k - 1]
        clicked = float(draw.random() < reward[one])
        weighted.append(clicked / propensity / 26)
        plain.append(clicked)
    truth = reward[4:].mean()
    error = np.std(weighted) / math.sqrt(REQUESTS)
    assert abs(np.mean(weighted) - truth) < 4 * error
    assert error < 0.05 < truth - np.mean(plain)


def test_the_same_request_draws_the_same_and_others_draw_anew() -> None:
    shelf = Shelf([Explore(2)], films(ROWS))
    slates = [tuple(shelf.slate(SCORES, 6, request=f"r{number % 50}")) for number in range(100)]
    assert slates[:50] == slates[50:]
    assert len(set(slates)) > 40
    draws = np.array([[uniform(f"r{number}", slot) for slot in range(2)] for number in range(2_000)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.08
    assert abs(draws.mean() - 0.5) < 0.02


def test_the_first_place_is_never_drawn_and_slates_are_as_long_as_they_can_be() -> None:
    shelf = Shelf([Explore(5)], films(ROWS))
    for k in (1, 2, 3, 6, 29, 30, 100):
        for request in range(10):
            decision = shelf.decide(SCORES, k, request=f"r{request}")
            assert decision.order[0] == 0
            assert len(decision.propensities) == min(k, 30)
            assert (decision.propensities[: max(1, min(k, 30) - 5)] == 1.0).all()
            assert (decision.propensities > 0).all()
    assert shelf.decide(SCORES, 1).propensities.tolist() == [1.0]
    assert (shelf.decide(SCORES, 6).propensities[1:] < 1.0).all()


def test_places_that_the_pool_does_not_suffice_for_are_filled_as_without() -> None:
    nothing = Shelf([Explore(2, among="fresh")], films(ROWS))
    decision = nothing.decide(SCORES, 4, explain=True)
    assert decision.order[:4].tolist() == [0, 1, 2, 3]
    assert decision.account == {"explore": {"places": [], "among": 0}}
    one = nothing.decide(SCORES, 4, ranks=[nan] * 9 + [1.0] + [nan] * 20, explain=True)
    assert one.order[:4].tolist() == [0, 1, 2, 9]
    assert one.propensities.tolist() == [1.0] * 4
    assert one.account == {"explore": {"places": [4], "among": 1}}
    all_shown = nothing.decide(SCORES, 4, ranks=[1.0, 2.0, 3.0] + [nan] * 27)
    assert all_shown.order[:4].tolist() == [0, 1, 2, 3]
    unscored = Shelf([Explore(2)], films(ROWS)).decide([1.0] + [nan] * 29, 3)
    assert (unscored.order[:3].tolist(), unscored.propensities.tolist()) == ([0, 1, 2], [1.0] * 3)


def test_two_draws_never_exceed_a_cap_together() -> None:
    rows = [{"creator": "a"}, *({"creator": "bbcc"[number % 4]} for number in range(10))]
    shelf = Shelf([Cap("creator", 1), Explore(2)], films(rows))
    slates = [shelf.slate([9.0, *[1.0] * 10], 3, request=f"r{number}") for number in range(200)]
    assert {tuple(sorted(rows[one]["creator"] for one in slate)) for slate in slates} == {("a", "b", "c")}
    assert len({tuple(slate) for slate in slates}) > 10
