"""Several rankers as one: the mean of those beside it, each on the scale of its own spread."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shortlist.ranking.ensemble import MEMBERS, EnsembleError
from shortlist.ranking.ensemble import Ensemble as EnsembleScorer
from shortlist.ranking.scoring import load_scorer
from shortlist.ranking.specs import BoostedTrees, DeepCross, Ensemble, LambdaMART, LogisticRegression, RankerSpec
from shortlist.training.comparing.reasons import PATHS, adds_up, reason
from shortlist.training.rankers.ensemble import spread_within
from shortlist.training.rankers.fitting import NothingToLearnError, RankingData, fit_ranker

MEMBERS_OF: list[RankerSpec] = [LogisticRegression(), LambdaMART(trees=40), DeepCross(epochs=2)]


def world(seed: int, requests: int = 120, size: int = 12) -> RankingData:
    """A linear taste, and a price that matters only between two bounds."""
    rng = np.random.default_rng(seed)
    rows = requests * size
    taste, price = rng.normal(size=(2, rows))
    odds = 1.5 * taste + np.where(np.abs(price) < 0.5, 1.5, -1.5)
    gain = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    return RankingData(
        np.stack([taste, price, np.ones(rows)]), ("taste", "price", "one"), gain, np.repeat(np.arange(requests), size)
    )


def fitted(place: Path, *beside: RankerSpec) -> Path:
    """The directory of an ensemble of these rankers."""
    for spec in (*beside, Ensemble()):
        fit_ranker(spec, world(1), world(2), place / spec.name, seed=3)
    return place / "ensemble"


def test_it_is_the_mean_of_the_others_in_units_of_their_spread(tmp_path: Path) -> None:
    together = load_scorer(fitted(tmp_path, *MEMBERS_OF))
    learned, test = world(1), world(4)
    expected = []
    for spec in MEMBERS_OF:
        alone = load_scorer(tmp_path / spec.name)
        margins = alone.margin(learned.matrix, learned.names).reshape(120, 12)
        expected.append(alone.margin(test.matrix, test.names) / (margins - margins.mean(1, keepdims=True)).std())
    assert together.names == ("taste", "price")
    assert np.allclose(together.score(test.matrix, test.names), np.mean(expected, axis=0))


def test_rankers_of_one_kind_share_what_a_kind_counts(tmp_path: Path) -> None:
    trees: list[RankerSpec] = [LambdaMART(trees=20), BoostedTrees("pointwise", trees=20)]
    together, test = load_scorer(fitted(tmp_path, LogisticRegression(), *trees)), world(4)
    assert isinstance(together, EnsembleScorer)
    own = {m.name: m.scorer.margin(test.matrix, test.names) / m.spread for m in together.members}
    expected = own["logistic_regression"] / 2 + (own["lambdamart"] + own["pointwise_trees"]) / 4
    assert np.allclose(together.score(test.matrix, test.names), expected)
    assert adds_up(np.sum(list(together.explain(test.matrix, test.names).values()), axis=0), expected)


def test_contributions_add_up_and_the_reason_names_its_members(tmp_path: Path) -> None:
    together = load_scorer(fitted(tmp_path, LogisticRegression(), LambdaMART(trees=20)))
    test = world(4, requests=5)
    parts = together.explain(test.matrix, test.names)
    assert set(parts) == {"bias", "taste", "price"}
    scores = together.score(test.matrix, test.names)
    assert adds_up(np.sum(list(parts.values()), axis=0), scores)
    assert np.array_equal(together.margin(test.matrix, test.names), scores)
    told = reason(together)
    assert told.effort == PATHS
    assert "lambdamart" in told.words
    assert "one weight per column" in told.words


def test_its_probabilities_come_true(tmp_path: Path) -> None:
    together, test = load_scorer(fitted(tmp_path, *MEMBERS_OF[:2])), world(4, requests=400)
    (chance,) = together.probabilities(test.matrix, test.names).values()
    surest = chance > np.quantile(chance, 0.9)
    assert test.gain[surest].mean() == pytest.approx(chance[surest].mean(), abs=0.06)


def test_the_same_members_give_the_same_bytes_and_stand_alone(tmp_path: Path) -> None:
    one, two = (fitted(tmp_path / name, *MEMBERS_OF[:2]) for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert Path("lambdamart/trees.txt") in files
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    moved = (tmp_path / "one" / "ensemble").rename(tmp_path / "moved")
    test = world(4)
    found = load_scorer(moved).score(test.matrix, test.names)
    assert np.array_equal(found, load_scorer(two).score(test.matrix, test.names))


@pytest.mark.parametrize("beside", [(), (LogisticRegression(),)], ids=["nobody", "one"])
def test_one_ranker_is_no_ensemble(beside: tuple[RankerSpec, ...], tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match=r"two other rankers at least.*declare another one"):
        fitted(tmp_path, *beside)


def test_other_ensembles_and_rankers_without_an_opinion_are_no_members(tmp_path: Path) -> None:
    fitted(tmp_path, *MEMBERS_OF[:2])
    silent = tmp_path / "silent"
    fit_ranker(LogisticRegression("silent"), world(1), world(2), silent, seed=3)
    model = json.loads((silent / "linear.json").read_text())
    model["terms"] = [{**term, "weight": 0.0, "missing": 0.0} for term in model["terms"]]
    (silent / "linear.json").write_text(json.dumps(model))
    again = fit_ranker(Ensemble("again"), world(1), None, tmp_path / "again", seed=3)
    assert set(again.figures) == {"lambdamart.spread", "logistic_regression.spread"}


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"spreads": {"lambdamart": 0}}', '{"spreads": {"../lambdamart": 1}}', '{"spreads": 3}']
)
def test_damaged_members_are_refused(damage: str, tmp_path: Path) -> None:
    directory = fitted(tmp_path, *MEMBERS_OF[:2])
    (directory / MEMBERS).write_text(damage)
    with pytest.raises(EnsembleError, match=r"ensemble.json: .*train the ranker again"):
        load_scorer(directory)


def test_a_spread_is_what_is_left_within_requests() -> None:
    data = world(1, requests=3, size=4)
    of_requests = np.repeat([1.0, 50.0, -7.0], 4)
    assert spread_within(of_requests, data) == pytest.approx(0.0)
    assert spread_within(of_requests + np.tile([1.0, -1.0, 2.0, -2.0], 3), data) == pytest.approx(2.5**0.5)
