"""Requests drawn from the past, against a slow reading of the same definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shortlist.training.requests import Positives, requests_of

events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.sampled_from([1.0, 2.0])), max_size=40)


def positives(drawn: list[tuple[int, int, float]]) -> Positives:
    position = np.arange(len(drawn), dtype=np.int64) * 2 + 100
    users, items, gains = (np.array([event[part] for event in drawn]) for part in range(3))
    return Positives(users.astype(np.int32), items.astype(np.int32), position, position * 10, gains.astype(np.float64))


@given(events, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 3)))
def test_each_user_asks_evenly_spread_and_what_follows_is_relevant(
    drawn: list[tuple[int, int, float]], per_user: int, horizon: int | None
) -> None:
    found = requests_of(positives(drawn), per_user, most=10_000, horizon=horizon)
    expected = []
    for user in sorted({event[0] for event in drawn}):
        own = [(index, event) for index, event in enumerate(drawn) if event[0] == user]
        asked = min(len(own), per_user)
        for turn in range(asked):
            start = turn * len(own) // asked
            following = own[start:] if horizon is None else own[start : start + horizon]
            gains: dict[int, float] = {}
            for _, (_, item, gain) in following:
                gains[item] = max(gain, gains.get(item, 0.0))
            expected.append((own[start][0] * 2 + 100, user, gains))
    expected.sort(key=lambda request: request[0])
    assert found.position.tolist() == [position for position, _, _ in expected]
    assert found.user.tolist() == [user for _, user, _ in expected]
    assert (found.now == found.position * 10).all()
    for row, (_, _, gains) in enumerate(expected):
        part = slice(found.relevant.offsets[row], found.relevant.offsets[row + 1])
        assert dict(zip(found.relevant.items[part], found.relevant.gains[part], strict=True)) == gains


def test_the_newest_are_kept_where_there_are_too_many() -> None:
    drawn = [(user, 0, 1.0) for user in range(10)]
    assert requests_of(positives(drawn), 5, most=3).user.tolist() == [7, 8, 9]
    assert len(requests_of(positives(drawn), 5, most=0)) == 0


def test_a_part_of_the_positives_is_cut_by_position() -> None:
    part = positives([(1, item, 1.0) for item in range(5)]).between(102, 106)
    assert part.item.tolist() == [1, 2]


def test_the_newest_share_of_each_user_is_put_aside() -> None:
    user = np.array([0, 1, 0, 0, 1, 0, 0, 2], np.int32)
    n = np.arange(8)
    positives = Positives(user, n.astype(np.int32), 10 + n, n, np.ones(8))
    rest, newest = positives.of_each_user(0.4)
    assert newest.position.tolist() == [15, 16]  # 2 of the five of user 0, none of two, none of one
    assert rest.position.tolist() == [10, 11, 12, 13, 14, 17]
    assert [len(part) for part in positives.between(0, 0).of_each_user(0.5)] == [0, 0]
