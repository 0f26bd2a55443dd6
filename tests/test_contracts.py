"""What every stage promises, written once per Protocol and held against every implementation of a trained project.

The queries are the ordinary odd cases: nobody, somebody unknown, a very long name, somebody who has seen everything.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import shortlist
from shortlist.loop import learn
from shortlist.pipeline import stages
from shortlist.pipeline.candidates import NOTHING, Candidates
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.runner import ByScore, Pipeline
from shortlist.project import load_project
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.specs import CoVisitation, Fresh, MatrixFactorisation, TwoTower
from shortlist.serving.batch import Nobody
from shortlist.serving.impressions import UNLOGGED
from shortlist.serving.running import Running
from shortlist.settings import load_settings
from shortlist.slate.diversity import Embedding
from shortlist.slate.specs import MMR, Cap, Exclude, Pin
from shortlist.starter import make
from shortlist.training.backtest import LiveColumns

READERS = ("ada", "nobody-ever", "日本" * 500, None, "reads-all")
VERBS: dict[type, str] = {
    stages.QueryHydrator: "learn",
    stages.Source: "propose",
    stages.Resort: "portions",
    stages.Hydrator: "describe",
    stages.Filter: "keep",
    stages.Scorer: "score",
    stages.Merger: "merge",
    stages.Selector: "arrange",
    stages.Observer: "observe",
    stages.Ranker: "rank",
}


@dataclass
class House:
    """A running project: its pipelines, and every stage in them by verb."""

    pipelines: tuple[Pipeline, ...]
    stages: dict[str, list[Any]]
    items: int
    asked: int = 0

    def query(self, user: str | None, k: int = 5) -> Query:
        """A question of which the pipeline has learned all it can."""
        self.asked += 1
        deadline, now = Deadline.after(60_000), time.time_ns() // 1_000_000
        query = Query(user, k, now, f"q{self.asked}", deadline, exclude=frozenset({"dune"}), known={UNLOGGED: True})
        for stage in self.pipelines[0].understand:
            for name, value in stage.learn(query).items():
                query.learn(name, value)
        return query

    def everything(self) -> Candidates:
        """The whole catalogue."""
        return Candidates(np.arange(self.items, dtype=np.int32))

    def hydrated(self, query: Query, candidates: Candidates) -> Candidates:
        """With every column."""
        for hydrator in self.pipelines[0].hydrators:
            candidates = hydrator.describe(query, candidates)
        return candidates


def stages_of(pipelines: Iterable[Pipeline]) -> dict[str, list[Any]]:
    """Every stage once, by verb."""
    found: dict[str, list[Any]] = {verb: [] for verb in VERBS.values()}
    for pipeline in pipelines:
        parts: list[tuple[str, Iterable[Any]]] = [
            ("learn", pipeline.understand),
            ("propose", pipeline.sources),
            ("portions", [pipeline.last_resort]),
            ("describe", pipeline.hydrators),
            ("keep", [*pipeline.filters, *pipeline.late_filters]),
            ("score", [pipeline.scorer]),
            ("merge", [pipeline.merger]),
            ("arrange", [pipeline.selector]),
            ("observe", pipeline.observers),
            ("rank", [pipeline]),
        ]
        for verb, held in parts:
            found[verb] += [stage for stage in held if stage is not None and stage not in found[verb]]
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("projects") / "shelf"
    make(folder)
    rules = [MMR("two_tower"), Cap("author", 2), Pin(items=["emma"], at=3), Exclude(where=("year", "<", 1700))]
    declared = load_project(folder)
    history = next(source.history for source in declared.sources if isinstance(source, TwoTower))
    sources = [*declared.sources, CoVisitation(history), MatrixFactorisation(history), Fresh()]
    project = replace(declared, slate=rules, sources=sources)
    settings = replace(load_settings(folder, {}), port=0, cache_seconds=60.0)
    assert learn(project, settings, 0, lambda step, share: None).promoted  # noqa: ARG005
    with Running(project, settings) as running:
        running.wait_ready()
        champion, live = running.service.champion, running.service.live
        assert champion is not None
        assert live is not None
        ids = list(live.table.entities["book"].ids)
        now = time.time_ns() // 1_000_000
        live.log.append([{"kind": "finish", "at": now, "reader": "reads-all", "book": item} for item in ids])
        pipelines = (champion.recommend, champion.rank)
        by_verb = stages_of(pipelines)
        by_verb["arrange"].append(ByScore())
        by_verb["merge"].append(champion.recommend.merger.merger)  # type: ignore[union-attr]
        by_verb["observe"].append(Nobody())
        by_verb["describe"].append(LiveColumns(Catalogue(live.table, "book"), "reader"))
        yield House(pipelines, by_verb, len(ids))


def implementations(protocol: type, verb: str) -> set[str]:
    """The classes of the package that have the protocol's verb with its parameters."""
    wanted = list(inspect.signature(getattr(protocol, verb)).parameters)
    found = set()
    for module in pkgutil.walk_packages(shortlist.__path__, "shortlist."):
        if module.name.endswith("__main__"):
            continue
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = vars(value).get(verb) if value.__module__ == module.name else None
            if inspect.isfunction(own) and not getattr(value, "_is_protocol", False):
                found |= {value.__name__} if list(inspect.signature(own).parameters) == wanted else set()
    return found


@pytest.mark.parametrize(("protocol", "verb"), VERBS.items(), ids=VERBS.values())
def test_every_implementation_stands_here(house: House, protocol: type, verb: str) -> None:
    here = {type(stage).__name__ for stage in house.stages[verb]}
    assert implementations(protocol, verb) - here == set()


def test_stages_that_stand_side_by_side_have_names_of_their_own(house: House) -> None:
    for pipeline in house.pipelines:
        for verb in ("understand", "sources", "filters", "hydrators"):
            names = [stage.name for stage in getattr(pipeline, verb)]
            assert len(set(names)) == len(names)
            assert all(names)


@pytest.mark.parametrize("user", READERS)
def test_a_source_proposes_each_item_at_most_once(house: House, user: str | None) -> None:
    for source in house.stages["propose"]:
        found = source.propose(house.query(user))
        assert found.items.dtype == np.int32
        assert len(np.unique(found.items)) == len(found)
        assert ((found.items >= 0) & (found.items < house.items)).all()
        assert all(len(column) == len(found) for column in found.columns.values())


@pytest.mark.parametrize("user", READERS)
def test_the_last_resort_has_every_item_once_whoever_asks(house: House, user: str | None) -> None:
    for resort in house.stages["portions"]:
        portions = [portion.items for portion in resort.portions(house.query(user, k=1))]
        assert all(len(items) for items in portions)
        assert sorted(np.concatenate(portions).tolist()) == list(range(house.items))


@pytest.mark.parametrize("user", READERS)
def test_a_hydrator_describes_the_candidates_it_was_given_and_depends_on_no_other(
    house: House, user: str | None
) -> None:
    query, given = house.query(user), house.everything()
    for hydrator in house.stages["describe"]:
        whole = hydrator.describe(query, given)
        assert np.array_equal(whole.items, given.items)
        one = hydrator.describe(query, given.take(np.array([3])))
        for name, column in one.columns.items():
            assert column[0] == pytest.approx(whole.columns[name][3], nan_ok=True, rel=1e-6)
        if one.matrix is not None and whole.matrix is not None:
            assert np.array_equal(one.matrix[:, 0], whole.matrix[:, 3], equal_nan=True)
        assert len(hydrator.describe(query, given.take(np.array([], np.intp)))) == 0


@pytest.mark.parametrize("user", READERS)
def test_a_filter_judges_each_candidate_by_itself(house: House, user: str | None) -> None:
    query, given = house.query(user), house.everything()
    for judge in house.stages["keep"]:
        mask = judge.keep(query, given)
        assert mask.dtype == np.bool_
        assert mask.shape == given.items.shape
        assert np.array_equal(judge.keep(query, given.take(np.arange(house.items)[::-1])), mask[::-1])


@pytest.mark.parametrize("user", READERS)
def test_a_scorer_gives_each_candidate_its_own_score(house: House, user: str | None) -> None:
    query = house.query(user)
    described = house.hydrated(query, house.everything())
    for scorer in house.stages["score"]:
        scores = scorer.score(query, described)
        assert scores.dtype == np.float64
        assert scores.shape == described.items.shape
        turned = described.take(np.arange(house.items)[::-1])
        assert np.array_equal(scorer.score(query, turned), scores[::-1])


def test_a_source_with_vectors_has_one_for_each_item_that_it_knows(house: House) -> None:
    query, items = house.query("ada"), np.array([3, -1, 0, 3], np.int32)
    found = [source for source in house.stages["propose"] if isinstance(source, Embedding)]
    assert [source.name for source in found] == ["two_tower", "matrix_factorisation"]
    for source in found:
        vectors = source.item_vectors(items)
        assert vectors.dtype == np.float32
        assert not vectors[1].any()
        assert np.array_equal(vectors[0], vectors[3])
        scores = source.describe(query, Candidates(items)).columns[f"{source.name}_score"]  # type: ignore[attr-defined]
        assert vectors[[0, 2]] @ query.known[f"{source.name}_vector"] == pytest.approx(scores[[0, 2]], rel=1e-5)


def test_a_merger_loses_nothing_twice_and_invents_nothing(house: House) -> None:
    query = house.query("ada")
    proposals = {source.name: source.propose(query) for source in house.pipelines[0].sources}
    for merger in house.stages["merge"]:
        merged = merger.merge(query, proposals)
        assert len(np.unique(merged.items)) == len(merged)
        assert set(merged.items.tolist()) <= {item for found in proposals.values() for item in found.items.tolist()}
        nothing = merger.merge(query, dict.fromkeys(proposals, NOTHING))
        assert len(nothing) == 0


def test_a_selector_arranges_without_repeating(house: House) -> None:
    rng = np.random.default_rng(0)
    for selector in house.stages["arrange"]:
        scores = rng.normal(size=house.items)
        scores[::5] = np.nan
        order = selector.arrange(house.query("ada"), house.everything().describe({"score": scores}))
        assert len(np.unique(order)) == len(order)
        assert np.isfinite(scores[order[: np.isfinite(scores).sum()]]).all()


def test_an_observer_never_gets_in_the_way(house: House) -> None:
    for observer in house.stages["observe"]:
        query = house.query("ada")
        assert observer.observe(query, Slate(query.request, (), ()), NOTHING) is None


@pytest.mark.parametrize("user", READERS)
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_a_ranker_always_answers(house: House, user: str | None, k: int) -> None:
    for ranker in house.stages["rank"]:
        own = ("solaris", "no such book", "dune") if ranker is house.pipelines[1] else None
        query = replace(house.query(user, k), items=own, known={UNLOGGED: True})
        slate = ranker.rank(query)
        assert len(set(slate.items)) == len(slate.items) == len(slate.scores) <= k
        assert "dune" not in slate.items  # excluded
        if user != "reads-all" or own:
            assert len(slate.items) >= min(k, 2 if own else 5)
        else:
            assert slate.items == ()  # all seen: an ordinary case
