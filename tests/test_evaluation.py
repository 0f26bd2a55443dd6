"""Evaluation asks as serving would have been asked: against a slow reading of the log, request by request."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import EventLog, MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType, Impression
from shortlist.features.hashing import hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import Pipeline
from shortlist.project import Project
from shortlist.training.backtest import Past, ask
from shortlist.training.evaluation import Contest, Losses, evaluate
from shortlist.training.requests import requests_of
from shortlist.training.rows import columns_of, drawn, everyone, observed_positives, shown

user, film = Entity("user"), Entity("film", year=int)
watch = EventType("watch", user, film, stars=float)
loved = watch.by(film).count().named("watched")
LABELS = ObservedPositives({watch: 1.0}, where=("stars", ">=", 4.0))
PROJECT = Project("films", user, film, [watch], LABELS, [loved, watch.by(user).count().named("active")])
FEATURES = FeatureSet(PROJECT.features, PROJECT.all_entities)


class Watched:
    """Films by how often they were watched, ties by index: a source made of the live table."""

    name = "watched"

    def __init__(self, table: FeatureTable, most: int) -> None:
        self.table, self.most = table, most

    def propose(self, query: Query) -> Candidates:
        films = self.table.entities["film"]
        if not len(films):
            return Candidates(np.empty(0, np.int32))
        counts = self.table.read({"film": films.hashes}, query.now, {}, ["watched"])["watched"]
        return Candidates(np.lexsort((np.arange(len(counts)), -counts))[: self.most].astype(np.int32))


class NotSeen:
    name = "not_seen"

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.ids: Any = None

    def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:
        return np.array([(query.user, self.ids[item]) not in self.seen for item in candidates.items], np.bool_)


class Described:
    name = "features"

    def __init__(self, table: FeatureTable) -> None:
        self.table = table

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        ids = {"user": hash_strings([query.user]), "film": self.table.entities["film"].hashes[candidates.items]}
        return candidates.with_matrix(FEATURES.columns, self.table.read(ids, query.now, {}, FEATURES.columns).values)


class Fewest:
    """A ranker that is always wrong: the least watched first."""

    name = "fewest"

    def score(self, query: Query, candidates: Candidates) -> Column:
        assert query.user
        assert candidates.matrix is not None
        score: Column = -candidates.matrix[FEATURES.columns.index("watched")]
        return score


def quiet(step: str, share: float) -> None:
    assert step
    assert 0 <= share <= 1


def make_log(seed: int, films: int = 25, watches: int = 400) -> MemoryLog:
    rng, log = np.random.default_rng(seed), MemoryLog(PROJECT.schemas)
    for turn in range(watches):
        event = {"kind": "watch", "at": turn * 60_000, "user": f"u{rng.integers(9)}"}
        title = int(films * rng.random() ** 2 * min(1.0, 0.3 + turn / watches))
        log.append([{**event, "film": f"f{title}", "stars": float(rng.integers(2, 6))}], received=turn * 60_000)
    return log


def make_pipeline(table: FeatureTable, most: int) -> Pipeline:
    seen = NotSeen()
    seen.ids = table.entities["film"].ids
    update = table.update

    def follow(batch: Any) -> None:
        update(batch)
        seen.seen |= set(zip(batch.strings("user").to_pylist(), batch.strings("film").to_pylist(), strict=True))

    table.update = follow  # type: ignore[method-assign]
    return Pipeline(
        table.entities["film"], sources=[Watched(table, most)], filters=[seen], hydrators=[Described(table)]
    )


def slow_evaluation(log: EventLog, cut: int, most: int) -> tuple[dict[str, list[float]], Counter[str]]:
    """NDCG@10 of popularity per user, and where each positive was lost, straight from the definitions."""
    events = [event for batch in log.scan() for event in batch.table.to_pylist()]
    positive = [(e["user"], e["film"], e["offset"]) for e in events if e["watch.stars"] >= 4.0 and e["offset"] >= cut]
    ndcgs: dict[str, list[float]] = {}
    lost: Counter[str] = Counter()
    for who in {p[0] for p in positive}:
        own = [p for p in positive if p[0] == who]
        for turn in range(min(5, len(own))):
            start = turn * len(own) // min(5, len(own))
            position, relevant = own[start][2], {p[1] for p in own[start:]}
            known = events[:position]
            counts = Counter(e["film"] for e in known)
            first = list(dict.fromkeys(e["film"] for e in known))
            ranked = sorted(first, key=lambda film: (-counts[film], first.index(film)))[:most]
            watched = {e["film"] for e in known if e["user"] == who}
            kept = [film for film in ranked if film not in watched]
            for film in relevant:
                where = "ranked_below"
                if film not in first:
                    where = "not_in_catalogue"
                elif film in watched:
                    where = "filtered"
                elif film not in ranked:
                    where = "not_retrieved"
                elif film in kept[:10]:
                    where = "in_slate"
                lost[where] += 1
            dcg = sum(1 / math.log2(rank + 2) for rank, film in enumerate(kept[:10]) if film in relevant)
            best = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))
            ndcgs.setdefault(who, []).append(dcg / best)
    return ndcgs, lost


@pytest.mark.parametrize(("seed", "most"), [(1, 500), (2, 12), (3, 4)])
def test_evaluation_is_what_the_definitions_say(seed: int, most: int) -> None:
    log, cut = make_log(seed), 300
    table = FeatureTable(FEATURES)
    pipeline = make_pipeline(table, most)
    known = everyone(log, PROJECT, log.position)
    positives = observed_positives(log, PROJECT, known, log.position)
    requests = requests_of(positives.between(cut, log.position), per_user=5, most=1000)
    contest = Contest(pipeline, {"fewest": Fewest()}, "fewest", pipeline.sources[0])
    found = evaluate(contest, Past(log, table), "film", known.users.ids, requests, 1, quiet)
    ndcgs, lost = slow_evaluation(log, cut, most)
    expected = np.mean([np.mean(values) for values in ndcgs.values()])
    assert found.users == len(ndcgs)
    assert found.requests == sum(map(len, ndcgs.values()))
    assert found.methods["popularity"].metrics["ndcg@10"].value == pytest.approx(expected)
    assert found.losses.positives == sum(lost.values())
    assert found.losses.not_retrieved == lost["not_retrieved"]
    assert evaluate_popularity(seed, most) == Losses(**lost)


def evaluate_popularity(seed: int, most: int) -> Losses:
    """The losses where popularity itself serves."""
    log, cut = make_log(seed), 300
    table = FeatureTable(FEATURES)
    pipeline = make_pipeline(table, most)
    known = everyone(log, PROJECT, log.position)
    positives = observed_positives(log, PROJECT, known, log.position)
    requests = requests_of(positives.between(cut, log.position), per_user=5, most=1000)
    contest = Contest(pipeline, {}, "", pipeline.sources[0])
    found = evaluate(contest, Past(log, table), "film", known.users.ids, requests, 1, quiet)
    assert found.methods["two_stage"] == found.methods["popularity"]
    assert found.metrics("watched")["ndcg@10"] == found.metrics("watched")["watched.ndcg@10"]
    return found.losses


def test_an_empty_slice_measures_nothing() -> None:
    log = make_log(1)
    table = FeatureTable(FEATURES)
    known = everyone(log, PROJECT, log.position)
    positives = observed_positives(log, PROJECT, known, log.position)
    requests = requests_of(positives.between(log.position, log.position), 5, 100)
    pipeline = make_pipeline(table, 10)
    contest = Contest(pipeline, {}, "", pipeline.sources[0])
    found = evaluate(contest, Past(log, table), "film", known.users.ids, requests, 1, quiet)
    assert (found.users, found.requests, found.methods) == (0, 0, {})
    assert found.metrics("watched") == {}


def test_drawn_rows_hold_the_positives_and_nothing_that_was_seen() -> None:
    log = make_log(4)
    table = FeatureTable(FEATURES)
    known = everyone(log, PROJECT, log.position)
    positives = observed_positives(log, PROJECT, known, log.position)
    requests = requests_of(positives.between(200, 320), 5, 1000)
    some = np.zeros(len(requests), np.bool_)
    rows = drawn(make_pipeline(table, 12), Past(log, table), known, requests, 7, quiet, some)
    events = [event for batch in log.scan() for event in batch.table.to_pylist()]
    users, films = (dict(zip(held.hashes.tolist(), held.ids, strict=True)) for held in (known.users, known.items))
    assert (np.diff(rows.request) >= 0).all()
    assert set(rows.request.tolist()) == set(rows.request[rows.gain > 0].tolist()) <= set(range(len(requests)))
    assert (rows.gain == 0).any()
    first = rows.gain[np.unique(rows.request, return_index=True)[1]] > 0
    assert 0 < first.mean() < 1, "positives must not stand first: ties are broken by order"
    for who, what, position, gain in zip(rows.user, rows.item, rows.position, rows.gain, strict=True):
        before = [event for event in events[:position] if event["user"] == users[int(who)]]
        later = [e for e in events[position:320] if e["user"] == users[int(who)] and e["watch.stars"] >= 4]
        assert films[int(what)] not in {event["film"] for event in before}
        assert (gain > 0) == (films[int(what)] in {event["film"] for event in later})
    pairs = set(zip(rows.request.tolist(), rows.item.tolist(), strict=True))
    assert len(pairs) == len(rows)
    columns = columns_of(log, FEATURES, PROJECT, rows)
    for row in (0, len(rows) // 2, len(rows) - 1):
        before = [event for event in events[: rows.position[row]] if event["film"] == films[int(rows.item[row])]]
        assert columns["watched"][row] == len(before)
    again_table = FeatureTable(FEATURES)
    again = drawn(make_pipeline(again_table, 12), Past(log, again_table), known, requests, 7, quiet, some)
    np.testing.assert_array_equal(rows.item, again.item)


def test_of_chosen_requests_all_that_was_retrieved_becomes_rows_and_nothing_at_random() -> None:
    log = make_log(4)
    known = everyone(log, PROJECT, log.position)
    positives = observed_positives(log, PROJECT, known, log.position)
    requests = requests_of(positives.between(200, 320), 5, 1000)
    whole = np.arange(len(requests)) % 2 == 1
    table, asked_table = FeatureTable(FEATURES), FeatureTable(FEATURES)
    rows = drawn(make_pipeline(table, 12), Past(log, table), known, requests, 7, quiet, whole)
    pipeline, past = make_pipeline(asked_table, 12), Past(log, asked_table)
    beyond = 0
    for asked in ask(pipeline, past, known.users.ids, requests, "ask", quiet):
        retrieved = set(known.items.hashes[asked.merged.items].tolist())
        found = set(rows.item[rows.request == asked.number].tolist())
        if whole[asked.number]:
            assert found in (retrieved, set())  # none where no positive was retrieved
        beyond += len(found - retrieved) > 0
    assert beyond


def test_impressions_become_rows_that_know_nothing_of_their_own_slate() -> None:
    impression = Impression(user, film)
    labels = Labels(impression, {watch: 2.0}, within="1h")
    project = Project("shown", user, film, [watch, impression], labels)
    log = MemoryLog(project.schemas)
    for slate in range(4):
        at = slate * 10_000_000
        seen = [
            {"kind": "impression", "at": at, "user": "u", "film": f"f{n}", "request": f"r{slate}", "position": n + 1}
            for n in range(3)
        ]
        acted = {"kind": "watch", "at": at + 1000, "user": "u", "film": f"f{slate % 3}", "stars": 1.0 + slate}
        log.append([*seen, acted], at)
    rows = shown(log, project, labels, 0, log.position, 1, amounts={watch: "stars"})
    assert rows.request.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.position.tolist() == [0] * 3 + [4] * 3 + [8] * 3
    assert rows.gain.reshape(3, 3).sum(axis=1).tolist() == [2, 2, 2]
    orders = {tuple(rows.item[rows.request == slate].tolist()) for slate in range(3)}
    assert len(orders) > 1, "rows must not stand in the order of the slate: ties are broken by it"
    films = hash_strings(["f0", "f1", "f2"]).tolist()
    assert [films.index(item) for item in rows.item[rows.gain > 0].tolist()] == [0, 1, 2]
    assert rows.amounts["watch"][rows.gain > 0].tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(rows.amounts["watch"][rows.gain == 0]).all()
    assert rows.unclosed == 3
    newest = shown(log, project, labels, 0, log.position, 1, most=4)
    assert newest.position.tolist() == [4] * 3 + [8] * 3
    assert newest.left_out == 3
    assert newest.followed_by(rows).request.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
