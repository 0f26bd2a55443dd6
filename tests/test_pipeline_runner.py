"""The runner: what it answers, in every case in which something is missing, late or broken."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.pace import Pace
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.stages import Decision
from shortlist.pipeline.trace import Trace
from shortlist.retrieval.eligibility import eligible
from shortlist.retrieval.merge import Interleaved


@dataclass
class Shop:
    """A catalogue of `size` items named i0, i1, …"""

    size: int

    @property
    def ids(self) -> Sequence[str]:
        return [f"i{number}" for number in range(self.size)]

    def index_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        known = {name: number for number, name in enumerate(self.ids)}
        return np.array([known.get(name, -1) for name in ids], np.int32)


@dataclass
class Listed:
    """A source that proposes a fixed list."""

    items: Iterable[int]
    name: str = "listed"

    def propose(self, query: Query) -> Candidates:  # noqa: ARG002
        return Candidates(np.array(list(self.items), np.int32))


@dataclass
class Rest(Listed):
    """A last resort: the list in portions, each twice as large as the one before."""

    name: str = "popular"
    asked: int = 0

    def portions(self, query: Query) -> Iterator[Candidates]:
        items, start, size = list(self.items), 0, max(256, query.k)
        while start < len(items):
            self.asked += 1
            yield Candidates(np.array(items[start : start + size], np.int32))
            start, size = start + size, size * 2


@dataclass
class FirstCome:
    """A merger: one list after the other, without duplicates."""

    name: str = "first_come"

    def merge(self, query: Query, proposals: Mapping[str, Candidates]) -> Candidates:  # noqa: ARG002
        items = dict.fromkeys(itertools.chain.from_iterable(found.items.tolist() for found in proposals.values()))
        return Candidates(np.array(list(items), np.int32))


@dataclass
class Without:
    """A filter that drops the given items."""

    dropped: Iterable[int]
    name: str = "without"

    def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
        return ~np.isin(candidates.items, list(self.dropped))


@dataclass
class Numbered:
    """A hydrator that writes the item's index."""

    name: str = "numbered"

    def describe(self, query: Query, candidates: Candidates) -> Candidates:  # noqa: ARG002
        return candidates.describe({"number": candidates.items.astype(float)})


@dataclass
class ByFunction:
    """A scorer: any function of the index."""

    function: Callable[[int], float]
    name: str = "by_function"

    def score(self, query: Query, candidates: Candidates) -> Column:  # noqa: ARG002
        return np.array([self.function(item) for item in candidates.items.tolist()], float)


@dataclass
class Broken:
    """Every kind of stage at once; raises whatever it is asked."""

    name: str = "broken"

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("the disk is on fire")

    learn = propose = merge = describe = keep = score = arrange = observe = _fail


@dataclass
class Slow:
    """A source that takes `ms` of the test's own clock."""

    clock: HandClock
    ms: float
    items: Sequence[int]
    name: str = "slow"
    calls: int = 0

    def propose(self, query: Query) -> Candidates:  # noqa: ARG002
        self.calls += 1
        self.clock.now += self.ms / 1000
        return Candidates(np.array(self.items, np.int32))


@dataclass
class HandClock:
    """A clock that moves only when told."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Seen:
    """An observer that remembers."""

    name: str = "seen"
    slates: list[tuple[Slate, Candidates]] = field(default_factory=list)

    def observe(self, query: Query, slate: Slate, shown: Candidates) -> None:  # noqa: ARG002
        self.slates.append((slate, shown))


def ask(k: int = 3, ms: float = 10_000.0, clock: Callable[[], float] | None = None, **rest: Any) -> Query:
    deadline = Deadline.after(ms) if clock is None else Deadline.after(ms, clock)
    return Query(user="ann", k=k, now=0, request="r1", deadline=deadline, **rest)


def high(item: int) -> float:
    return float(item)


def test_the_best_scores_come_first_and_duplicates_once() -> None:
    pipeline = Pipeline(
        Shop(10), ByFunction(high), sources=[Listed([1, 2, 3], "a"), Listed([3, 4], "b")], merger=FirstCome()
    )
    slate = pipeline.rank(ask(k=3))
    assert slate.items == ("i4", "i3", "i2")
    assert slate.scores == (4.0, 3.0, 2.0)
    assert slate.propensities == (1.0, 1.0, 1.0)
    assert slate.degraded == ()
    assert slate.explanation is None


def test_ties_keep_the_order_of_retrieval_and_scores_that_are_not_finite_rank_last() -> None:
    odd = {0: float("nan"), 1: 1.0, 2: float("inf"), 3: 1.0, 4: float("-inf"), 5: 2.0}
    pipeline = Pipeline(Shop(6), ByFunction(odd.__getitem__), sources=[Listed([3, 0, 1, 2, 4, 5])])
    assert pipeline.rank(ask(k=3)).items == ("i5", "i3", "i1")


def test_a_filter_drops_before_scoring() -> None:
    scored: list[int] = []

    def remember(item: int) -> float:
        scored.append(item)
        return float(item)

    pipeline = Pipeline(Shop(5), ByFunction(remember), sources=[Listed(range(5))], filters=[Without([4])])
    assert pipeline.rank(ask(k=2)).items == ("i3", "i2")
    assert 4 not in scored


def test_late_filters_are_refilled_from_the_reserve_and_see_every_column() -> None:
    @dataclass
    class Odd:
        name: str = "odd"

        def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
            mask: NDArray[np.bool_] = candidates.columns["number"] % 2 == 1
            return mask

    pipeline = Pipeline(
        Shop(10), ByFunction(high), sources=[Listed(range(10))], hydrators=[Numbered()], late_filters=[Odd()]
    )
    assert pipeline.rank(ask(k=4)).items == ("i9", "i7", "i5", "i3")
    assert pipeline.rank(ask(k=8)).items == ("i9", "i7", "i5", "i3", "i1")


def test_a_selector_arranges_what_all_rounds_found_and_only_what_late_filters_let_through() -> None:
    @dataclass
    class OneOfEach:
        """One even and one odd item, with their propensities; the rest is left out."""

        name: str = "one_of_each"

        def arrange(self, query: Query, candidates: Candidates) -> NDArray[np.intp]:
            return self.decide(query, candidates).order

        def decide(self, query: Query, candidates: Candidates) -> Decision:  # noqa: ARG002
            first = [np.flatnonzero(candidates.items % 2 == rest)[:1] for rest in (0, 1)]
            return Decision(np.concatenate(first), np.array([0.25]), {"one_of_each": {"found": len(candidates)}})

    pipeline = Pipeline(
        Shop(600),
        ByFunction(high),
        sources=[Listed([3, 5, 7])],
        late_filters=[Without([3, *range(1, 300, 6)])],
        selector=OneOfEach(),
        last_resort=Rest(range(600)),
    )
    slate = pipeline.rank(ask(k=2, explain=True))
    assert slate.items == ("i0", "i5")  # the first round holds no even item
    assert slate.propensities == (0.25, 1.0)
    assert slate.explanation is not None
    assert slate.explanation["slate"] == {"one_of_each": {"found": 1 + (256 - 3) - 42}}
    assert slate.explanation["filters"] == {"without": {"dropped": 2 + 42}}


def test_where_the_selector_fails_the_scores_order() -> None:
    pipeline = Pipeline(Shop(9), ByFunction(high), sources=[Listed([1, 4, 2])], selector=Broken())
    slate = pipeline.rank(ask(k=2))
    assert (slate.items, slate.propensities, slate.degraded) == (("i4", "i2"), (1.0, 1.0), ("broken",))


def test_the_last_resort_fills_up_what_was_not_retrieved_and_every_filter_holds_there_too() -> None:
    pipeline = Pipeline(
        Shop(10),
        ByFunction(high),
        sources=[Listed([7])],
        filters=[Without([0])],
        late_filters=[Without([1])],
        last_resort=Rest(range(10)),
    )
    slate = pipeline.rank(ask(k=20))
    assert slate.items[0] == "i7"
    assert sorted(slate.items) == [f"i{n}" for n in range(2, 10)]
    assert slate.degraded == ()


@pytest.mark.parametrize("one_has_not", [False, True])
def test_what_every_source_has_asked_a_filter_is_not_asked_again(one_has_not: bool) -> None:
    asked: list[int] = []

    class Odd:
        name = "odd"

        def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
            asked.append(len(candidates))
            return np.asarray(candidates.items % 2 == 1)

    class Careful(Listed):
        def propose(self, query: Query) -> Candidates:
            return eligible(filters, query, super().propose(query))

    filters, other = [Odd(), Odd()], Listed if one_has_not else Careful
    pipeline = Pipeline(
        Shop(10),
        sources=[Careful([1, 2, 3]), other([4, 5], "other")],
        merger=Interleaved({"listed": 1, "other": 1}),
        filters=filters,
    )
    slate = pipeline.rank(ask(k=10, explain=True))
    assert sorted(slate.items) == ["i1", "i3", "i5"]
    assert asked == ([3, 2, 4, 3] if one_has_not else [3, 2, 2, 1])
    assert slate.explanation is not None
    assert slate.explanation["filters"] == {"odd": {"dropped": int(one_has_not)}}


def test_the_last_resort_is_asked_for_no_more_than_is_needed() -> None:
    resort = Rest(range(10_000))
    pipeline = Pipeline(Shop(10_000), sources=[Listed([3])], filters=[Without(range(256))], last_resort=resort)
    assert pipeline.rank(ask(k=5)).items == ("i256", "i257", "i258", "i259", "i260")
    assert resort.asked == 2


def test_one_eligible_item_at_the_end_of_a_large_catalogue_is_found() -> None:
    size = 20_000
    pipeline = Pipeline(
        Shop(size),
        sources=[Listed([0])],
        filters=[Without(range(size - 1))],
        last_resort=Rest(range(size)),
    )
    assert pipeline.rank(ask(k=10)).items == (f"i{size - 1}",)


def test_nothing_eligible_is_an_empty_slate() -> None:
    pipeline = Pipeline(Shop(5), sources=[Listed([0])], filters=[Without(range(5))], last_resort=Rest(range(5)))
    slate = pipeline.rank(ask(explain=True))
    assert slate.items == ()
    assert slate.explanation is not None
    assert slate.explanation["filters"] == {"without": {"dropped": 5}}


def test_an_empty_catalogue_is_an_empty_slate() -> None:
    pipeline = Pipeline(Shop(0), ByFunction(high), sources=[Listed([])], last_resort=Rest([]))
    assert pipeline.rank(ask()).items == ()


@pytest.mark.parametrize("part", ["understand", "sources", "hydrators", "scorer", "selector", "observers", "merger"])
def test_a_stage_that_raises_is_replaced_and_named_and_the_answer_is_there(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    stages: dict[str, Any] = {"sources": [Listed([1, 2, 3])], "merger": None, "scorer": ByFunction(high)}
    if part in ("scorer", "selector"):
        stages[part] = Broken()
    elif part == "merger":
        stages["sources"], stages["merger"] = [Listed([1], "a"), Listed([2], "b")], Broken()
    else:
        stages[part] = [Broken()]
    pipeline = Pipeline(Shop(5), last_resort=Rest(range(5)), **stages)
    with caplog.at_level(logging.ERROR):
        slate = pipeline.rank(ask(k=3))
    assert len(slate.items) == 3
    if part != "observers":  # an observer runs when the answer is made already
        assert slate.degraded == (("broken", "by_function") if part == "hydrators" else ("broken",))
    assert pipeline.paces.failures == {"broken": 1}
    assert "the disk is on fire" in caplog.text


def test_a_broken_stage_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(Shop(5), sources=[Broken()], last_resort=Rest(range(5)))
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            pipeline.rank(ask())
    assert pipeline.paces.failures["broken"] == 100
    assert len(caplog.records) == 7  # 1, 2, 4, …, 64


def test_a_broken_filter_lets_nothing_through() -> None:
    pipeline = Pipeline(Shop(5), sources=[Listed(range(5))], filters=[Broken()], last_resort=Rest(range(5)))
    slate = pipeline.rank(ask())
    assert slate.items == ()
    assert slate.degraded == ("broken",)


def test_a_hydrator_may_neither_drop_nor_reorder() -> None:
    @dataclass
    class Sly:
        name: str = "sly"

        def describe(self, query: Query, candidates: Candidates) -> Candidates:  # noqa: ARG002
            return candidates.take(np.arange(len(candidates))[::-1])

    pipeline = Pipeline(Shop(5), sources=[Listed([1, 2, 3])], hydrators=[Sly()])
    slate = pipeline.rank(ask())
    assert slate.items == ("i1", "i2", "i3")
    assert slate.degraded == ("sly",)


def test_a_skipped_hydrator_stands_for_its_declared_defaults() -> None:
    seen = Seen()
    pipeline = Pipeline(
        Shop(5),
        sources=[Listed([1, 2])],
        hydrators=[Broken()],
        defaults={"broken": {"number": 0.5}},
        observers=[seen],
    )
    pipeline.rank(ask())
    assert seen.slates[0][1].columns["number"].tolist() == [0.5, 0.5]


def test_a_scorer_without_its_columns_is_left_out_too() -> None:
    def never(item: int) -> float:
        raise AssertionError(f"asked for the score of {item}")

    stages: dict[str, Any] = {"sources": [Listed([2, 1])], "hydrators": [Broken()]}
    slate = Pipeline(Shop(5), ByFunction(never), **stages).rank(ask())
    assert (slate.items, slate.scores) == (("i2", "i1"), (1.0, 0.5))
    assert slate.degraded == ("broken", "by_function")
    slate = Pipeline(Shop(5), ByFunction(high), defaults={"broken": {"number": 0.0}}, **stages).rank(ask())
    assert (slate.scores, slate.degraded) == ((2.0, 1.0), ("broken",))


def test_a_stage_that_would_miss_the_deadline_is_not_begun() -> None:
    clock = HandClock()
    slow = Slow(clock, ms=80, items=[4])
    pipeline = Pipeline(Shop(5), sources=[slow], last_resort=Rest(range(5)))
    first = pipeline.rank(ask(k=1, ms=100, clock=clock))
    assert (first.items, first.degraded) == (("i4",), ())
    second = pipeline.rank(ask(k=1, ms=50, clock=clock))
    assert (second.items, second.degraded) == (("i0",), ("slow",))
    assert slow.calls == 1
    third = pipeline.rank(ask(k=1, ms=100, clock=clock))
    assert (third.items, third.degraded) == (("i4",), ())


def test_a_stage_that_was_slow_once_gets_another_chance() -> None:
    clock = HandClock()
    slow = Slow(clock, ms=5_000, items=[4])
    pipeline = Pipeline(Shop(5), sources=[slow], last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1, ms=100, clock=clock))
    slow.ms = 1
    for _ in range(200):
        slate = pipeline.rank(ask(k=1, ms=100, clock=clock))
    assert (slate.items, slate.degraded) == (("i4",), ())


def test_a_deadline_that_has_passed_still_gets_popularity_and_the_filters() -> None:
    pipeline = Pipeline(
        Shop(5),
        ByFunction(high),
        sources=[Listed([4])],
        hydrators=[Numbered()],
        filters=[Without([0])],
        last_resort=Rest(range(5)),
    )
    slate = pipeline.rank(ask(k=2, ms=-1))
    assert slate.items == ("i1", "i2")
    assert slate.degraded == ("listed", "numbered", "by_function")


def test_the_callers_own_items_are_all_ranked_the_unknown_ones_too() -> None:
    seen = Seen()
    pipeline = Pipeline(Shop(5), ByFunction(high), observers=[seen], last_resort=Rest(range(5)))
    slate = pipeline.rank(ask(k=10, items=("new", "i2", "also new", "i3")))
    assert slate.items == ("i3", "i2", "new", "also new")
    assert seen.slates[0][1].items.tolist() == [3, 2, -1, -1]


def test_none_of_the_callers_own_items_is_a_slate_without_items_and_never_the_last_resort() -> None:
    pipeline = Pipeline(Shop(5), ByFunction(high), last_resort=Rest(range(5)))
    assert pipeline.rank(ask(items=())).items == ()


def test_the_explanation_says_where_each_item_comes_from() -> None:
    @dataclass
    class Weighted:
        name: str = "weighted"

        def score(self, query: Query, candidates: Candidates) -> Column:
            return sum(self.contributions(query, candidates).values(), np.zeros(len(candidates)))

        def contributions(self, query: Query, candidates: Candidates) -> Mapping[str, Column]:  # noqa: ARG002
            return {"number": candidates.columns["number"] * 2, "bias": np.full(len(candidates), 0.5)}

    pipeline = Pipeline(
        Shop(9),
        Weighted(),
        sources=[Listed([1, 2, 3], "a"), Listed([3, 4], "b")],
        merger=FirstCome(),
        hydrators=[Numbered()],
        filters=[Without([4])],
        versions={"release": "7-abc"},
    )
    slate = pipeline.rank(ask(k=2, explain=True))
    explanation = slate.explanation
    assert explanation is not None
    assert explanation["sources"] == {
        "a": {"proposed": 3, "first": ["i1", "i2", "i3"]},
        "b": {"proposed": 2, "first": ["i3", "i4"]},
    }
    assert explanation["filters"] == {"without": {"dropped": 1}}
    top = explanation["items"][0]
    assert top["item"] == "i3"
    assert top["columns"] == {"number": 3.0, "score": 6.5}
    assert sum(top["contributions"].values()) == top["columns"]["score"]
    assert explanation["versions"] == {"release": "7-abc"}
    assert [step["verb"] for step in explanation["steps"]] == [
        "propose", "propose", "merge", "filter", "hydrate", "score", "select", "explain",
    ]  # fmt: skip


def test_what_the_query_hydrators_learn_is_written_once() -> None:
    @dataclass
    class Learner:
        name: str

        def learn(self, query: Query) -> Mapping[str, Any]:
            return {"history": len(query.known)}

    query = ask()
    Pipeline(Shop(1), understand=[Learner("one")]).rank(query)
    assert query.known == {"history": 0}
    with pytest.raises(KeyError, match="already known"):
        query.learn("history", 1)


def test_several_sources_need_a_merger() -> None:
    with pytest.raises(ValueError, match="merger"):
        Pipeline(Shop(1), sources=[Listed([], "a"), Listed([], "b")])


def test_the_watcher_sees_every_trace() -> None:
    traces: list[Trace] = []
    Pipeline(Shop(3), sources=[Listed([1])], watch=traces.append).rank(ask())
    assert [(step.verb, step.kept) for step in traces[0].steps] == [("propose", 1), ("select", 1)]


items = st.lists(st.integers(0, 29), unique=True, max_size=30)


@given(proposed=items, also=items, early=items, late=items, k=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_the_slate_is_as_long_as_it_can_be_and_every_filter_holds(
    proposed: list[int], also: list[int], early: list[int], late: list[int], k: int
) -> None:
    pipeline = Pipeline(
        Shop(30),
        ByFunction(high),
        sources=[Listed(proposed, "a"), Listed(also, "b")],
        merger=FirstCome(),
        filters=[Without(early, "early")],
        late_filters=[Without(late, "late")],
        last_resort=Rest(range(30)),
    )
    slate = pipeline.rank(ask(k=k))
    eligible = set(range(30)) - set(early) - set(late)
    shown = [int(item[1:]) for item in slate.items]
    assert len(shown) == len(set(shown)) == min(k, len(eligible))
    assert set(shown) <= eligible
    retrieved = sorted((set(proposed) | set(also)) & eligible, reverse=True)
    assert shown[: len(retrieved)] == retrieved[:k]


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 1.0, 500.0]))
@settings(max_examples=20, deadline=None)
def test_the_pace_follows_the_upper_tail_of_any_scale(seed: int, scale: float) -> None:
    draws = np.random.default_rng(seed).lognormal(0, 0.3, 3_000) * scale
    pace = Pace()
    above = 0
    for number, draw in enumerate(draws):
        if number >= 1_000:
            above += draw > pace.estimate_ms
        pace.took(draw)
    assert 0.05 < above / 2_000 < 0.2
