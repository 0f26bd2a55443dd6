"""The trade-off table: what is measured is what training measures, and words claim no more than the intervals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist.cli.comparing import overlap, show
from shortlist.events.labels import Labels
from shortlist.events.log import MemoryLog
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.ranking.linear import Linear, Term
from shortlist.ranking.scoring import RankerStage
from shortlist.ranking.specs import LambdaMART, LogisticRegression
from shortlist.retrieval.specs import CoVisitation, Fresh, Popular
from shortlist.training.comparing.advice import recommendations
from shortlist.training.comparing.reasons import COUNTS, OPAQUE, PATHS, WEIGHTS, Reason, adds_up, attribution, reason
from shortlist.training.comparing.tradeoffs import Contribution, Method, TradeOffs, found_in, median_ms, trade_offs
from shortlist.training.metrics import Floats, Interval, Relevant
from shortlist.training.train import train
from tests.test_training_train import HOUR, TOWERS, history, impression, log_of, project, taste_events, watch

NOWHERE = Interval(0.0, 0.0, 0.0)
NAN = Interval(math.nan, math.nan, math.nan)


@pytest.fixture(scope="module")
def log() -> MemoryLog:
    return log_of(taste_events(700))


@pytest.fixture(scope="module")
def weighed(log: MemoryLog) -> TradeOffs:
    twice = Popular(quota=10, name="popular_again")
    return trade_offs(project(sources=[Popular(quota=20), TOWERS, twice]), log, 5, lambda *_: None)


def test_every_method_has_a_line_with_what_was_measured(weighed: TradeOffs) -> None:
    names = {method.name: method for method in weighed.methods}
    assert set(names) == {
        "popularity", "two_tower", "popular_again", "lambdamart", "logistic_regression", "two_stage",
    }  # fmt: skip
    for method in names.values():
        assert 0 < method.latency_ms < 1_000
        assert {"ndcg@10", "recall@10"} <= set(method.quality)
    assert names["popularity"].bytes == 0
    assert min(names[name].bytes for name in ("two_tower", "lambdamart", "logistic_regression")) > 100
    assert names["two_tower"].seconds > 0
    assert names["two_stage"].seconds >= names["two_tower"].seconds
    assert {"recall@100", "recall@500"} <= set(names["two_stage"].quality)
    assert "recall@100" not in names["lambdamart"].quality
    json.dumps(weighed.to_dict(), allow_nan=False)


def test_the_figures_are_those_of_the_release_of_the_same_seed(log: MemoryLog, tmp_path: Path) -> None:
    weighed = trade_offs(project(), log, 5, lambda *_: None)
    release = train(project(), log, tmp_path, seed=5)
    measured = release.manifest.details["evaluation"]
    for method in weighed.methods:
        for metric, interval in method.quality.items():
            retrieved = metric in ("recall@100", "recall@500")
            name = "merged" if retrieved and method.name == "two_stage" else method.name
            assert measured["retrieval" if retrieved else "methods"][name][metric] == interval.to_dict()
    assert set(release.created["fit_seconds"]) == {"popular", "two_tower", "lambdamart", "logistic_regression"}


def test_a_source_that_repeats_another_adds_nothing(weighed: TradeOffs) -> None:
    parts = {part.source: part for part in weighed.contributions}
    again = parts["popular_again"]
    assert again.alone == 0.0
    assert not again.is_useful
    assert again.overlap["popularity"] == 1.0
    assert parts["popularity"].overlap["popular_again"] == pytest.approx(again.found / parts["popularity"].found)
    said = recommendations(weighed, 100.0)
    assert any(sentence.startswith("Popular again adds nothing") for sentence in said)
    useful = [part.source for part in weighed.contributions if part.is_useful]
    assert all(any(f"{name.replace('_', ' ').capitalize()} adds to" in one for one in said) for name in useful)


def test_the_printed_table_names_the_source_that_finds_most_of_another(weighed: TradeOffs) -> None:
    parts = {part.source: part for part in weighed.contributions}
    assert overlap(parts["popular_again"]) == "popularity 100%"
    towers = parts["two_tower"]
    assert overlap(towers) == f"popularity {towers.overlap['popularity']:.0%}"
    assert towers.overlap["popularity"] >= towers.overlap["popular_again"]
    assert overlap(replace(towers, overlap={"popularity": 0.0})) == overlap(replace(towers, overlap={})) == "-"
    assert overlap(None) == "-"  # of the whole


@pytest.mark.parametrize("width", [80, 120])
def test_the_printed_table_fits(
    weighed: TradeOffs, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(weighed, project())
    said = capsys.readouterr().out
    assert "ordered again" not in said
    assert "popularity 100%" in said if width > 80 else "100%" in said
    retrieval = said.split("retrieval", 1)[1].split("What can")[0].splitlines()
    assert max(map(len, retrieval)) <= width
    show(weighed, project(labels=Labels(impression, {watch: 1.0})))
    assert "NDCG@10: slates shown (if any was acted on), ordered again" in capsys.readouterr().out


def test_what_one_source_alone_finds_is_lost_without_it(log: MemoryLog) -> None:
    alone = trade_offs(project(sources=[Popular(quota=40)], rankers=[]), log, 5, lambda *_: None)
    (part,) = alone.contributions
    assert part.found == part.alone > 0.1
    assert part.without["recall@500"].value == 0.0
    assert part.adds["recall@500"].low > 0
    assert part.is_useful


def test_what_was_found_by_hand() -> None:
    relevant = Relevant(np.array([3, 7, 3], np.int32), np.ones(3), np.array([0, 2, 3]))
    items = np.array([[7, 1, -1], [4, -1, -1]], np.int32)
    assert found_in(items, relevant).tolist() == [False, True, False]


def test_a_project_without_anything_to_measure_says_so() -> None:
    events = [{"kind": "watch", "at": 0, "user": "u", "film": "f"}]
    weighed = trade_offs(project(), log_of(events), 0, lambda *_: None)
    assert weighed.requests == 0
    assert all(math.isnan(method.latency_ms) for method in weighed.methods)
    (said,) = recommendations(weighed, 100.0)
    assert "Nothing could be measured" in said
    json.dumps(weighed.to_dict(), allow_nan=False)


def test_where_impressions_are_logged_what_was_shown_is_compared() -> None:
    rng = np.random.default_rng(6)
    events = [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(30)]
    for slate in range(400):
        who, at = int(rng.integers(15)), slate * HOUR
        shown = rng.choice(30, 6, replace=False)
        for place, what in enumerate(shown):
            event = {"kind": "impression", "at": at, "user": f"u{who}", "film": f"f{what}", "request": f"r{slate}"}
            events.append({**event, "position": place + 1})
        liked = [what for what in shown if rng.random() < (0.8 if what % 3 == who % 3 else 0.05)]
        events += [{"kind": "watch", "at": at + 1, "user": f"u{who}", "film": f"f{what}"} for what in liked]
    labels = Labels(impression, {watch: 1.0}, within="30m")
    whole = project(labels=labels, sources=[Popular(quota=20), Popular(quota=5, name="few")], rankers=[])
    weighed = trade_offs(whole, log_of(events), 0, lambda *_: None)
    (ranker,) = (method for method in weighed.methods if method.role == "ranker")
    values = weighed.values["ndcg@10"]
    assert float(np.nanmean(values[ranker.name])) == pytest.approx(ranker.value("ndcg@10"))
    assert weighed.difference("ndcg@10", ranker.name, "popularity").low > 0
    assert "few" not in values  # what it proposes has no score, so what was shown cannot be ordered by it
    assert recommendations(weighed, 100.0)[1].startswith("To rank: logistic regression")


def test_of_few_users_nothing_is_claimed() -> None:
    weighed = table({"popularity": [0.1] * 9, "two_tower": [0.9] * 9}, {})
    (said,) = recommendations(weighed, 100.0)
    assert said.startswith("Only 9 users")


def table(retrieval: Mapping[str, list[float]], ranking: Mapping[str, list[float]]) -> TradeOffs:
    """A table of given values per user; two stages are like the first source where nothing else is said."""
    ranking = {"two_stage": next(iter(retrieval.values())), **ranking}
    values: dict[str, dict[str, Floats]] = {
        "recall@100": {name: np.array(held) for name, held in retrieval.items()},
        "ndcg@10": {name: np.array(held) for name, held in {**retrieval, **ranking}.items()},
    }
    reasons = {"popularity": COUNTS, "two_tower": OPAQUE, "linear": COUNTS, "trees": PATHS}

    def method(name: str) -> Method:
        quality = {metric: Interval(float(held[name].mean()), 0, 1) for metric, held in values.items() if name in held}
        role = "source" if name in retrieval else "pipeline" if name == "two_stage" else "ranker"
        why = None if name == "two_stage" else Reason(f"how {name} works", reasons[name])
        return Method(name, role, quality, 1.0, 10, 1.0, why)  # type: ignore[arg-type]

    users = len(next(iter(retrieval.values())))
    methods = tuple(map(method, {**retrieval, **ranking}))
    return TradeOffs(users, 3 * users, methods, (), (), values, 0)


def around(mean: float, noise: float, users: int = 200, seed: int = 0) -> list[float]:
    drawn = np.random.default_rng(seed).standard_normal(users)
    return list(mean + noise * (drawn - drawn.mean()))


def test_better_recall_is_recommended_and_what_is_easier_to_debug_named() -> None:
    weighed = table({"popularity": around(0.2, 0.1), "two_tower": around(0.3, 0.1, seed=1)}, {})
    said = recommendations(weighed, 100.0)[0]
    assert said.startswith(
        "To retrieve with one source: two tower for better Recall@100 (0.300 against 0.200, difference +0.100, 95 %"
    )
    assert "popularity would be easier to debug: it shows how popularity works" in said


def test_a_difference_that_may_be_chance_is_not_claimed() -> None:
    weighed = table({"popularity": around(0.2, 0.1), "two_tower": around(0.205, 0.1, seed=1)}, {})
    said = recommendations(weighed, 100.0)[0]
    assert said.startswith(
        "To retrieve with one source: popularity. Two tower has Recall@100 0.205 against 0.200, but that may be"
    )
    assert "better" not in said


def test_of_a_small_catalogue_sources_are_told_apart_by_their_order() -> None:
    weighed = table({"popularity": [1.0] * 50, "two_tower": [0.99] * 50}, {})
    order = {"popularity": around(0.2, 0.05, 50), "two_tower": around(0.4, 0.05, 50, seed=1)}
    values = {"recall@100": weighed.values["recall@100"], "ndcg@10": {**weighed.values["ndcg@10"], **arrays(order)}}
    methods = [
        replace(m, quality={**m.quality, "ndcg@10": Interval(mean_of(order, m.name), 0, 1)}) for m in weighed.methods
    ]
    said = recommendations(replace(weighed, methods=tuple(methods), values=values), 100.0)
    assert said[0].startswith("To retrieve with one source: two tower for better NDCG@10 (0.400 against 0.200")
    assert any("The catalogue is so small" in sentence for sentence in said)


def arrays(values: Mapping[str, list[float]]) -> dict[str, Floats]:
    return {name: np.array(held) for name, held in values.items()}


def mean_of(values: Mapping[str, list[float]], name: str) -> float:
    return float(np.mean(values.get(name, [0.4])))


def test_rankers_and_the_second_stage_are_judged_by_their_order() -> None:
    ranking = {"linear": around(0.3, 0.02), "trees": around(0.4, 0.02, seed=2), "two_stage": around(0.4, 0.02, seed=2)}
    weighed = table({"popularity": around(0.2, 0.02, seed=3)}, ranking)
    said = recommendations(weighed, 100.0)
    assert any(sentence.startswith("To rank: trees for better NDCG@10 (0.400 against 0.300") for sentence in said)
    assert any(sentence.startswith("Two stages are worth it: better than popularity alone") for sentence in said)
    worse = table({"popularity": around(0.5, 0.02, seed=3)}, ranking)
    assert any("Two stages are not worth it" in sentence for sentence in recommendations(worse, 100.0))
    equal = table({"popularity": around(0.4, 0.1, seed=3)}, {"two_stage": around(0.4, 0.1, seed=4)})
    assert any("no better and no worse" in sentence for sentence in recommendations(equal, 100.0))


def test_a_deadline_that_is_not_held_is_said() -> None:
    weighed = table({"popularity": around(0.2, 0.1)}, {"two_stage": around(0.3, 0.1)})
    assert "1% of the deadline of 100 ms" in recommendations(weighed, 100.0)[-1]
    assert "over the deadline of 0.5 ms" in recommendations(weighed, 0.5)[-1]


def test_a_source_that_brings_something_is_not_called_useless() -> None:
    useful = Contribution("a", 0.5, 0.2, {}, {}, {"recall@100": NOWHERE, "recall@500": Interval(0.1, 0.05, 0.2)})
    assert useful.is_useful
    assert not replace(useful, adds={"recall@500": Interval(0.1, 0.0, 0.2)}).is_useful
    assert not replace(useful, adds={"recall@500": NAN}).is_useful


def test_what_drives_a_ranker_is_what_moves_its_scores() -> None:
    linear = Linear([Term("strong", 0.0, 0, 1, 3.0, 0), Term("weak", 0.0, 0, 1, 1.0, 0)], 0.5)
    block = np.random.default_rng(0).standard_normal((3, 400))
    candidates = Candidates(np.arange(400, dtype=np.int32)).with_matrix(("weak", "strong", "unused"), block)
    found = attribution(RankerStage("linear", linear), Query("u", 10, 0, "q", Deadline(math.inf)), candidates)
    assert [name for name, _ in found.drivers] == ["strong", "weak"]
    assert found.drivers[0][1] == pytest.approx(0.75, abs=0.05)
    assert found.exact
    assert not adds_up(np.array([1.0, 2.0]), np.array([1.0, 2.5]))


class Guess:
    """Draws lots. Nobody knows why."""

    def explain(self) -> None:
        """What each column adds: nothing,
        of course.

        More than that is not known.
        """


def test_of_an_unknown_kind_its_own_words_are_shown() -> None:
    assert reason(Guess()) == Reason("what each column adds: nothing, of course", OPAQUE)
    assert reason(LogisticRegression()).words.startswith("the linear baseline")
    assert reason(Popular()).effort == reason(Fresh()).effort == COUNTS
    assert reason(CoVisitation(history)).effort == WEIGHTS
    assert reason(TOWERS).effort == OPAQUE
    assert reason(LambdaMART()).effort == OPAQUE  # a spec of a ranker has no reason of its own: its scorer has


def test_the_first_round_does_not_count() -> None:
    pauses = iter([0.05, 0.001, 0.001, 0.001])
    assert median_ms(lambda _: time.sleep(next(pauses)), [[None]] * 4) < 20
    assert math.isnan(median_ms(print, [[], []]))
