"""Rules of the slate: caps, fairness, pins, boosts and exclusions, with every odd candidate there is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.pipeline.candidates import NOTHING, Candidates
from shortlist.simulation.behaviour import DAY_MS
from shortlist.slate.assembly import exclusions
from shortlist.slate.constraints import exposures
from shortlist.slate.draft import scaled
from shortlist.slate.specs import DPP, MMR, Boost, Cap, Exclude, Explore, Fairness, Pin, RuleSpec, names_of
from shortlist.slate.targets import ADDED, Pinned, WithPinned, proposed
from tests.slate_world import NOW, Shelf, ask, films

nan = float("nan")
BY = [{"creator": creator} for creator in "aaaabbc"]


def falling(count: int) -> list[float]:
    return [float(count - place) for place in range(count)]


def test_without_an_effect_rules_leave_the_order_of_scores() -> None:
    scores = [0.3, nan, 0.9, float("inf"), 0.3, -1e308, 1e308]
    shelf = Shelf([Cap("creator", 7), Boost(1.0, items=("f0",)), Pin(items=("f6",))], films(BY))
    assert shelf.slate(scores, 7) == [6, 2, 0, 4, 5, 1, 3]


@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("rule", [Cap("creator"), Fairness("creator", {"a": 0.5}), Explore(), Pin(items=("f1",))])
def test_no_candidate_is_no_slate_and_scores_may_all_be_missing(rule: RuleSpec, k: int) -> None:
    shelf = Shelf([rule], films(BY))
    assert shelf.slate([], k) == []
    assert sorted(shelf.slate([nan] * 4, k)) == sorted(set(shelf.slate([nan] * 4, k)))
    assert len(shelf.slate([nan] * 4, k)) == min(k, 4)
    assert shelf.decide([nan] * 4, k).propensities.tolist() == [1.0] * min(k, 4)


def test_a_cap_holds_back_what_is_there_often_enough() -> None:
    assert Shelf([Cap("creator", 2)], films(BY)).slate(falling(7), 5) == [0, 1, 4, 5, 6]
    assert Shelf([Cap("creator", 1)], films(BY)).slate(falling(7), 3) == [0, 4, 6]


def test_a_cap_counts_each_value_of_a_list_numbers_and_flags_and_nothing_where_there_is_none() -> None:
    rows: list[dict[str, Any]] = [
        {"genres": ["drama", "war"], "year": 1990},
        {"genres": ["war"], "year": 1990, "adult": True},
        {"genres": []},
        {},
        {"genres": ["comedy", "drama"], "year": 1991, "adult": True},
        {"genres": ["comedy"], "year": 1991},
    ]
    assert Shelf([Cap("genres")], films(rows)).slate(falling(6), 4) == [0, 2, 3, 5]
    assert Shelf([Cap("year")], films(rows)).slate(falling(6), 4) == [0, 2, 3, 4]
    assert Shelf([Cap("adult")], films(rows)).slate(falling(6), 5) == [0, 1, 2, 3, 5]


def test_where_a_cap_leaves_too_few_the_slate_is_filled_and_says_so() -> None:
    decision = Shelf([Cap("creator", 1)], films(BY)).decide(falling(7), 5, explain=True)
    assert decision.order[:5].tolist() == [0, 4, 6, 1, 2]
    assert decision.account == {"cap_creator": {"moved": 2, "waived": 2}}
    assert decision.order[5:].tolist() == [3, 5]


rows_drawn = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "creator": st.sampled_from("abc"),
            "genres": st.lists(st.sampled_from(["drama", "war", "comedy"]), max_size=3),
        },
    ),
    max_size=12,
)


@given(rows_drawn, st.integers(1, 14), st.integers(1, 3), st.integers(0, 99), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_caps_hold_wherever_no_place_had_to_be_filled(
    rows: list[dict[str, Any]], k: int, at_most: int, seed: int, slots: int
) -> None:
    rules: list[RuleSpec] = [Cap("genres", at_most), Cap("creator", at_most + 1)]
    if slots:
        rules.append(Explore(slots, temperature=0.5))
    scores = np.random.default_rng(seed).normal(size=len(rows)).round(1).tolist()
    shelf = Shelf(rules, films(rows))
    decision = shelf.decide(scores, k, request=f"r{seed}", explain=True)
    shown = decision.order[:k].tolist()
    assert len(shown) == min(k, len(rows)) == len(set(shown))
    if not decision.account["cap_genres"]["waived"]:
        counts = Counter(genre for one in shown for genre in set(rows[one].get("genres", [])))
        assert max(counts.values(), default=0) <= at_most
    if not decision.account["cap_creator"]["waived"]:
        counts = Counter(rows[one]["creator"] for one in shown if "creator" in rows[one])
        assert max(counts.values(), default=0) <= at_most + 1


def shares_of(groups: Sequence[str], names: Sequence[str]) -> tuple[Any, Any]:
    """What each beginning of a slate gives to each group, and in all: shapes (places, groups) and (places,)."""
    given_ = exposures(len(groups))
    held = np.array([[name == group for name in names] for group in groups])
    return np.cumsum(held * given_[:, None], axis=0), np.cumsum(given_)


@given(
    groups=st.lists(st.sampled_from("xy-"), min_size=1, max_size=40),
    share=st.floats(0.01, 0.9),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_group_gets_its_share_from_the_top_down(groups: list[str], share: float, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=len(groups)) - 5.0 * (np.array(groups) == "x")
    shelf = Shelf([Fairness("creator", {"x": share})], films([{"creator": group} for group in groups]))
    decision = shelf.decide(scores.tolist(), k, explain=True)
    shown = [groups[one] for one in decision.order[:k]]
    has, of_all = shares_of(shown, ["x"])
    given_, left = exposures(len(shown)), groups.count("x")
    for place, one in enumerate(shown):
        owed = share * of_all[place] - has[place, 0]
        assert one == "x" or left == 0 or owed < given_[place]
        left -= one == "x"
    reached = has[-1, 0] >= share * of_all[-1] - 1e-9
    assert reached == (exposures(len(shown))[: groups.count("x")].sum() >= share * of_all[-1] - 1e-9)
    assert bool(decision.account["fairness_creator"]["short"]) == (not reached)


def test_fairness_moves_no_more_than_it_must() -> None:
    rows = [{"creator": "x" if number in (20, 21, 22, 23, 24) else "y"} for number in range(30)]
    shelf = Shelf([Fairness("creator", {"x": 0.3})], films(rows))
    assert shelf.slate(falling(30), 10) == [0, 1, 20, 2, 3, 21, 4, 22, 5, 23]
    one = Shelf([Fairness("creator", {"c": 0.5})], films(BY)).decide(falling(7), 4, explain=True)
    assert one.order[:4].tolist() == [6, 0, 1, 2]
    short = one.account["fairness_creator"].pop("short")
    assert one.account == {"fairness_creator": {"moved": 1, "waived": 0}}
    assert short == {"c": pytest.approx(0.5 - 1.0 / exposures(4).sum())}
    already = Shelf([Fairness("creator", {"y": 0.9})], films(rows))
    assert already.slate(falling(30), 10) == list(range(10))


def test_several_groups_reach_their_shares_wherever_some_order_lets_giving_to_who_lacks_most_do_it() -> None:
    rng = np.random.default_rng(3)
    reached = 0
    for _ in range(150):
        shares = rng.dirichlet([1, 1, 2])[:2] * rng.uniform(0.5, 1.0)
        groups = rng.choice(list("xy-"), size=24, p=[0.4, 0.4, 0.2]).tolist()
        k = int(rng.integers(3, 7))
        rule = Fairness("creator", {"x": float(shares[0]), "y": float(shares[1])})
        shown = Shelf([rule], films([{"creator": group} for group in groups])).slate(rng.normal(size=24).tolist(), k)
        has, of_all = shares_of([groups[one] for one in shown], ["x", "y"])
        possible = any(
            (shares_of(order, ["x", "y"])[0][-1] >= shares * of_all[-1] - 1e-9).all()
            for order in itertools.product("xy-", repeat=k)
        )
        if (has[-1] >= shares * of_all[-1] - 1e-9).all():
            assert possible
            reached += 1
        elif possible:  # indivisible places: then nobody lacks more than the last place gives
            assert (shares * of_all[-1] - has[-1] < exposures(k)[-1] + 1e-9).all()
    assert reached > 100


def test_caps_before_fairness_win_where_both_cannot_hold() -> None:
    rows = [{"creator": "x", "genres": ["war"]} for _ in range(3)] + [{"creator": "y"} for _ in range(6)]
    both: list[RuleSpec] = [Cap("genres", 1), Fairness("creator", {"x": 0.9})]
    decision = Shelf(both, films(rows)).decide(falling(9), 4, explain=True)
    assert decision.order[:4].tolist() == [0, 3, 4, 5]
    assert decision.account["fairness_creator"]["waived"] == 3
    assert decision.account["fairness_creator"]["short"]["x"] > 0.4
    turned = Shelf(both[::-1], films(rows)).decide(falling(9), 4, explain=True)
    assert turned.order[:3].tolist() == [0, 1, 2]
    assert turned.account["cap_genres"]["waived"] == 2


def test_boosts_multiply_relevance_whatever_the_scale_of_the_scores() -> None:
    rows = [{"genres": ["war"]} if number in (3, 4) else {} for number in range(6)]
    for scale, shift in ((1.0, 0.0), (0.001, -7.0), (1e300, 0.0)):
        scores = [scale * score + shift for score in (1.0, 0.8, 0.6, 0.5, 0.2, 0.0)]
        assert Shelf([Boost(1.5, where=("genres", "==", "war"))], films(rows)).slate(scores, 6) == [0, 1, 3, 2, 4, 5]
        assert Shelf([Boost(0.1, items=("f0", "f1"))], films(rows)).slate(scores, 6) == [2, 3, 4, 0, 1, 5]
    assert Shelf([Boost(2.0, items=("f1",))], films(rows)).slate([1.0, nan, 0.5], 3) == [0, 2, 1]
    alike = Shelf([Boost(2.0, items=("f2",))], films(rows)).decide([1.0, 1.0, 1.0], 3, explain=True)
    assert alike.order.tolist() == [2, 0, 1]
    assert alike.account == {"boost_items": {"boosted": 1}}


def test_the_worst_candidate_stays_the_worst_whatever_its_factor() -> None:
    assert Shelf([Boost(100.0, items=("f2",))], films(BY)).slate([3.0, 2.0, 1.0], 3) == [0, 1, 2]
    assert Shelf([Boost(100.0, items=("f1",))], films(BY)).slate([3.0, 2.0], 2, items=("f0", "f1")) == [0, 1]


@pytest.mark.parametrize("far", [-1e6, 1e6, 2.0, nan])
@pytest.mark.parametrize(
    "rules",
    [
        [Boost(1.4, items=("f2", "f5"))],
        [Explore(2, temperature=0.2)],
        [MMR("towers", 0.5), Boost(3.0, items=("f8",))],
        [DPP("towers", 0.5, among=4)],
    ],
    ids=lambda rules: type(rules[0]).__name__,
)
def test_what_only_a_pin_proposes_changes_nothing_for_the_others(rules: list[RuleSpec], far: float) -> None:
    entities = films([{}] * 9)
    for seed in range(30):
        numbers = np.random.default_rng(seed)
        vectors, scores = numbers.normal(size=(9, 2)).astype(np.float32), numbers.normal(size=8).tolist()
        vectors[8] = 0  # it is like nothing
        alone = Shelf(rules, entities, vectors).decide(scores, 4, request=f"r{seed}")
        pinned = Shelf([Pin(items=("f8",)), *rules], entities, vectors)
        beside = pinned.decide([*scores, far], 5, request=f"r{seed}", added=True)
        assert beside.order[:5].tolist() == [8, *alone.order[:4].tolist()]
        assert beside.propensities.tolist() == [1.0, *alone.propensities.tolist()]


def test_what_lies_beyond_a_scale_gets_its_nearer_end() -> None:
    ends = np.array([False, True, True, True, False])
    assert scaled(np.array([-9.0, 1.0, 2.0, 3.0, 9.0]), ends).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_where_nothing_but_what_is_pinned_is_there_its_own_scores_are_the_scale() -> None:
    shelf = Shelf([Pin(items=("f0",), at=9), Boost(0.5, items=("f0",))], films(BY))
    assert shelf.slate([3.0], 1, added=True) == [0]
    items = np.arange(3, dtype=np.int32)
    added = Candidates(items, {"score": np.array([3.0, 2.0, 1.0]), ADDED: np.ones(3)})
    held_back = Shelf([Boost(0.4, items=("f0",))], films(BY)).stages.selector
    assert held_back.arrange(ask(3), added).tolist() == [1, 0, 2]  # .4 of 1 is less than the .5 of what is between
    alike = Candidates(items, {"score": np.array([2.0, 2.0, 1.0]), ADDED: np.array([nan, nan, 1.0])})
    assert held_back.arrange(ask(3), alike).tolist() == [1, 0, 2]  # what is pinned is worse than what is all the same


def test_pins_take_their_places_and_what_is_missing_leaves_no_gap() -> None:
    def slate(*pins: Pin, k: int = 4) -> list[int]:
        return Shelf(pins, films(BY)).slate(falling(7), k)

    assert slate(Pin(items=("f5",))) == [5, 0, 1, 2]
    assert slate(Pin(items=("f5", "f3"), at=2)) == [0, 5, 3, 1]
    assert slate(Pin(items=("unheard of", "f6"), at=2)) == [0, 6, 1, 2]
    assert slate(Pin(items=("f5",), at=9)) == [0, 1, 2, 3]
    assert slate(Pin(items=("f5",), at=9), k=9) == [0, 1, 2, 3, 4, 6, 5]
    assert slate(Pin(items=("f5",), at=2), Pin(items=("f6",), at=2)) == [0, 5, 6, 1]
    assert slate(Pin(items=("f5",), at=4), Pin(items=("f6",), at=4)) == [0, 1, 6, 5]
    assert slate(Pin(where=("creator", "==", "b"), at=1)) == [4, 0, 1, 2]
    assert slate(Pin(where=("creator", "==", "b")), Pin(where=("creator", "==", "b"))) == [4, 5, 0, 1]
    assert slate(Pin(where=("creator", "==", "nobody"))) == [0, 1, 2, 3]


def test_caps_and_fairness_know_what_is_pinned() -> None:
    rows = films(BY)
    assert Shelf([Cap("creator", 1), Pin(items=("f3",), at=3)], rows).slate(falling(7), 3) == [4, 6, 3]
    fair = Shelf([Fairness("creator", {"c": 0.2}), Pin(items=("f6",))], rows)
    assert fair.slate(falling(7), 4) == [6, 0, 1, 2]


def test_rules_hold_from_since_until_before_until() -> None:
    day = 86_400_000
    pin = Pin(items=("f5",), since="2023-11-14T22:13:20", until="2023-11-15T23:13:20+01:00")  # NOW, a day later
    shelf = Shelf([pin], films(BY))
    assert [shelf.slate(falling(7), 1, now=NOW + ms)[0] for ms in (-1, 0, day - 1, day)] == [0, 5, 5, 0]
    source = shelf.stages.sources[0]
    assert [source.propose(ask(1, now=NOW + ms)).items.tolist() for ms in (-1, 0)] == [[], [5]]
    (judge,) = exclusions([Exclude(items=("f5",), since="2030-01-01")], films(BY))
    assert judge.keep(ask(1), Candidates(np.array([5], np.int32))).tolist() == [True]


def test_what_is_pinned_by_name_is_proposed_and_gets_room_beside_a_full_list() -> None:
    class Ten:
        name = "ten"

        def merge(self, query: Any, proposals: Any) -> Candidates:  # noqa: ARG002
            assert set(proposals) == {"a"}
            return Candidates(np.arange(3, dtype=np.int32), {"a_rank": np.arange(3.0)})

    named = [Pin(items=("f5", "f1", "unheard of")), Pin(items=("f5", "f2"))]
    shelf = Shelf([*named, Pin(where=("year", ">", 1))], films(BY))
    (source,) = shelf.stages.sources
    found = source.propose(ask(3))
    assert found.items.tolist() == [5, 1, 2]
    merger = shelf.stages.merging(Ten())
    assert isinstance(merger, WithPinned)
    merged = merger.merge(ask(3), {"a": NOTHING, Pinned.name: found})
    assert merged.items.tolist() == [0, 1, 2, 5]
    assert np.isnan(merged.columns["a_rank"][-1])
    assert proposed(merged).tolist() == [True, True, True, False]
    assert merger.merge(ask(3), {"a": NOTHING}).items.tolist() == [0, 1, 2]
    plain = Ten()
    assert Shelf([Pin(where=("year", ">", 1))], films(BY)).stages.merging(plain) is plain


ROWS: list[dict[str, Any]] = [
    {"creator": "a", "genres": ["war", "drama"], "year": 1990, "adult": True},
    {"creator": "b", "genres": ["drama"], "year": 2000, "adult": False},
    {"genres": []},
    {},
]


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        (("creator", "==", "a"), [0]),
        (("creator", "!=", "a"), [1]),
        (("creator", "in", ["a", "b", "z"]), [0, 1]),
        (("creator", "==", "nobody"), []),
        (("genres", "==", "drama"), [0, 1]),
        (("genres", "!=", "war"), [1]),
        (("genres", "in", ("war", "comedy")), [0]),
        (("year", "<", 2000), [0]),
        (("year", ">=", 1990), [0, 1]),
        (("year", "!=", 1990), [1]),
        (("year", "in", {2000, 2001}), [1]),
        (("adult", "==", True), [0]),
        (("adult", "!=", True), [1]),
    ],
)
def test_a_condition_holds_for_what_has_such_a_value_and_never_for_what_has_none(
    where: tuple[str, str, Any], meant: list[int]
) -> None:
    (judge,) = exclusions([Exclude(where=where)], films(ROWS))
    everything = Candidates(np.array([0, 1, 2, 3, -1], np.int32))
    assert np.flatnonzero(~judge.keep(ask(5), everything)).tolist() == meant
    assert judge.keep(ask(5), NOTHING).tolist() == []


def test_a_moment_is_within_a_duration_of_each_request() -> None:
    shown = [{"year": NOW - 2 * DAY_MS}, {"year": NOW - 3 * DAY_MS}, {"year": NOW + 1}, {}]
    (judge,) = exclusions([Exclude(where=("year", "within", "3d"))], films(shown))
    everything = Candidates(np.array([0, 1, 2, 3, -1], np.int32))
    assert np.flatnonzero(~judge.keep(ask(5), everything)).tolist() == [0, 2]
    assert np.flatnonzero(~judge.keep(ask(5, now=NOW + DAY_MS), everything)).tolist() == [2]
    assert np.flatnonzero(~judge.keep(ask(5, now=NOW - DAY_MS), everything)).tolist() == [0, 1, 2]


def test_exclusions_by_name_and_of_the_callers_own_items() -> None:
    first, second = exclusions([Exclude(items=("f1", "unheard of")), Exclude(items=("f0",))], films(ROWS))
    assert (first.name, second.name) == ("exclude_items", "exclude_items_2")
    everything = Candidates(np.arange(4, dtype=np.int32))
    assert first.keep(ask(4), everything).tolist() == [True, False, True, True]
    own = Candidates(np.array([-1, 1, -1], np.int32), own=np.arange(3, dtype=np.int32))
    query = ask(4, items=("new", "f1", "unheard of"))
    assert first.keep(query, own).tolist() == [True, False, False]


def test_own_items_follow_every_rule_but_are_never_drawn() -> None:
    rules: list[RuleSpec] = [Cap("creator", 1), Boost(3.0, items=("new",)), Pin(items=("odd",), at=2), Explore(2)]
    own = ("f0", "f1", "f4", "new", "odd")
    for request in range(20):
        decision = Shelf(rules, films(BY)).decide([5.0, 4.0, 3.0, 2.5, 1.0], 5, items=own, request=str(request))
        assert [own[one] for one in decision.order] == ["new", "odd", "f0", "f4", "f1"]
        assert decision.propensities.tolist() == [1.0] * 5
        few = Shelf(rules, films(BY)).decide([5.0, 4.0, 3.0, 2.5, 1.0], 3, items=own, request=str(request))
        assert [own[one] for one in few.order[:3]] == ["new", "odd", "f0"]
        assert few.propensities.tolist() == [1.0] * 3


def test_of_very_many_own_items_the_first_thousand_places_follow_rules() -> None:
    rows = [{"creator": "a"}] * 1_500 + [{"creator": f"c{number}"} for number in range(1_000)]
    shown = Shelf([Cap("creator", 1)], films(rows)).slate(falling(2_500), 2_500)
    assert shown[:1_000] == [0, *range(1_500, 2_499)]
    assert shown[1_000:] == [*range(1, 1_500), 2_499]


def test_what_an_earlier_round_found_stays_more_relevant() -> None:
    shelf = Shelf([Boost(1.5, items=("f0",)), Cap("creator", 4)], films(BY))
    columns = {"score": np.array([9.0, 1.0, 2.0, 8.0]), "round": np.array([1.0, nan, nan, 1.0])}
    candidates = Candidates(np.array([4, 1, 2, 0], np.int32), columns)
    assert shelf.stages.selector.arrange(ask(4), candidates).tolist() == [2, 1, 0, 3]
    diverse = Shelf([MMR("genres", 0.9)], films(BY)).stages.selector
    assert diverse.arrange(ask(4), candidates).tolist() == [2, 1, 0, 3]


def test_every_rule_has_a_name_of_its_own() -> None:
    rules: list[RuleSpec] = [Cap("creator"), Cap("genres"), Cap("creator"), Pin(items=("a",)), Explore(), Boost(2.0)]
    assert names_of(rules) == ["cap_creator", "cap_genres", "cap_creator_2", "pin_items", "explore", "boost_items"]
