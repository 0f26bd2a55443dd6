"""What sources made of the user's history choose by themselves: on held-out actions, and only beyond chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from shortlist.features.hashing import hash_strings
from shortlist.retrieval.specs import CoVisitation, GraphFilter, MatrixFactorisation
from shortlist.training.sources.factors import fit_factors, halves
from shortlist.training.sources.graph import Graph
from shortlist.training.sources.item_weights import Exam, Interactions, fit_item_weights, ndcg_of, proven
from tests.test_history_sources import acts, dense_of, fitted, history


def test_the_newest_actions_are_held_out() -> None:
    of = Interactions.of(
        hash_strings(["a"] * 12 + ["b"] * 3), hash_strings([f"i{n:02}" for n in (*range(12), 0, 1, 2)]), np.arange(15)
    )
    exam = Exam.of(of, seed=0)
    assert exam.held.shape[0] == 1  # b has too few
    newest = hash_strings(["i10", "i11"])
    assert set(of.items[exam.held.indices]) == set(newest)
    assert exam.learned.sum() == 13
    assert not exam.known.multiply(exam.held).sum()


def test_ndcg_ranks_all_but_the_known_ones() -> None:
    of = acts(users=1, items=2, pairs=1).matrix()
    assert of.shape == (1, 1)
    matrix = Interactions(1, hash_strings(list("abcd")), np.zeros(2, np.int64), np.array([0, 2]))
    known, held = matrix.matrix(np.array([True, False])), matrix.matrix(np.array([False, True]))
    scores = np.array([[9.0, 3.0, 2.0, 1.0]], np.float32)
    assert ndcg_of(scores, known, held) == pytest.approx([1 / np.log2(3)])
    two = sparse.csr_matrix(np.array([[0, 0, 1, 1]], np.float32))
    assert ndcg_of(scores, known, two) == pytest.approx([(1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3))])
    assert ndcg_of(scores, known, two, depth=1) == pytest.approx([0.0])
    assert ndcg_of(-scores, known, two, depth=1) == pytest.approx([1.0])


def test_another_setting_has_to_prove_itself() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200)
    assert proven({"default": first, "other": first + rng.normal(0.0, 0.5, 200) * 0.01}, "default") == "default"
    assert proven({"default": first, "better": first + 0.1 + 0.1 * rng.random(200)}, "default") == "better"
    noise = rng.normal(0.0, 0.1, 200)
    noise -= noise.mean()
    error = noise.std(ddof=1) / 200**0.5
    assert proven({"default": first, "by luck": first + noise + 1.5 * error}, "default") == "default"
    assert proven({"default": first, "surely": first + noise + 1.8 * error}, "default") == "surely"
    assert proven({"default": np.array([np.nan]), "other": np.array([np.nan])}, "default") == "default"
    assert proven({}, "default") == "default"


def whose_newest_are(popular: bool) -> Interactions:
    """Acts on items that few know, five of each user's group, and then on something that everybody knows, or not."""
    rng = np.random.default_rng(0)
    pairs = []
    for user in range(300):
        rare = [f"rare {user % 30} {n}" for n in rng.permutation(8)[:6]]
        known = [f"known {n}" for n in rng.permutation(4)[:3]]
        chosen = [*rare[:5], *known] if popular else [*known, *rare]
        pairs += [(f"u{user}", item) for item in chosen]
    users, items = zip(*pairs, strict=True)
    return Interactions.of(hash_strings(list(users)), hash_strings(list(items)), np.arange(len(pairs)))


def test_how_much_popularity_is_held_back_is_chosen_on_the_newest_actions() -> None:
    acted = whose_newest_are(popular=True)
    weights, figures = fit_item_weights(CoVisitation(history), acted, 0, None, lambda _: None)
    assert figures["popularity"] < 0.5
    assert figures["ndcg@20"][str(figures["popularity"])] == max(figures["ndcg@20"].values())
    assert np.array_equal(dense_of(weights), fitted(CoVisitation(history, popularity=figures["popularity"]), acted))
    assert np.array_equal(
        fitted(CoVisitation(history), acted, popularity=0.1), fitted(CoVisitation(history, popularity=0.1), acted)
    )
    others = whose_newest_are(popular=False)
    assert fit_item_weights(CoVisitation(history), others, 0, None, lambda _: None)[1]["popularity"] == 0.5


def test_factors_are_as_deep_as_memory_allows_and_never_less_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = MatrixFactorisation(history)
    monkeypatch.setattr("shortlist.training.sources.factors.DEFAULT", 4)
    for numbers, most in ((30 * 9, 9), (30 * 2, 4), (10**9, 29)):
        monkeypatch.setattr("shortlist.training.sources.factors.NUMBERS", numbers)
        tried = fit_factors(deep, acts(items=30), 0, None, lambda _: None)[1]["ndcg@20"]
        assert max(int(name.split()[0]) for name in tried if not name.startswith("prolific")) == most


def whose_word_counts(prolific_know: bool) -> Interactions:
    """Users of many items and of few; those who know act within a group of items, the others across the groups."""
    rng = np.random.default_rng(0)
    pairs = []
    for user in range(600):
        many = user % 4 == 0
        group = np.arange(16) + 16 * (user % 15) if many == prolific_know else user % 16 + 16 * np.arange(15)
        pairs += [(f"u{user}", f"i{n}") for n in rng.permutation(group)[: 12 if many else 4 if prolific_know else 6]]
    users, items = zip(*pairs, strict=True)
    return Interactions.of(hash_strings(list(users)), hash_strings(list(items)), np.arange(len(pairs)))


def test_how_much_prolific_users_are_held_back_is_chosen_on_the_newest_actions() -> None:
    spec, filter_ = MatrixFactorisation(history, dimensions=12), GraphFilter(history, rank=12)
    acted = whose_word_counts(prolific_know=True)
    factors, figures = fit_factors(spec, acted, 0, None, lambda _: None)
    graph, of_graph = fit_item_weights(filter_, acted, 0, None, lambda _: None)
    for chosen in (figures, of_graph):
        reached = {name: value for name, value in chosen["ndcg@20"].items() if name.startswith("prolific")}
        assert chosen["prolific"] < 0.5
        assert reached[f"prolific {chosen['prolific']}"] == max(reached.values()) > reached["prolific 0.5"] + 0.02
    again = fit_factors(spec, acted, 0, figures, lambda _: None)[0]
    assert np.array_equal(factors.spoken, again.spoken)
    assert np.array_equal(graph.weights, fit_item_weights(filter_, acted, 0, of_graph, lambda _: None)[0].weights)
    at_random = whose_word_counts(prolific_know=False)
    assert fit_item_weights(filter_, at_random, 0, None, lambda _: None)[1]["prolific"] == 0.5


@pytest.mark.parametrize(("popular", "power"), [(True, 1.0), (False, 0.5)])
def test_how_much_the_first_directions_count_is_chosen_on_the_newest_actions(popular: bool, power: float) -> None:
    spec, acted = MatrixFactorisation(history, dimensions=40), whose_newest_are(popular)
    factors, figures = fit_factors(spec, acted, 0, None, lambda _: None)
    assert figures["power"] == power
    spoken, _ = halves(Graph.of(acted.matrix(), figures["dimensions"], 0, figures["prolific"]), power)
    assert np.array_equal(factors.spoken, spoken)
