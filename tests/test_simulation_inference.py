"""Whoever knows the items learns tastes from impressions and clicks, and no more than these tell."""

from __future__ import annotations

import numpy as np
import pytest

from shortlist.events.log import MemoryLog
from shortlist.simulation.behaviour import TASTE, examination, sigmoid
from shortlist.simulation.generate import generate
from shortlist.simulation.inference import Knower, most_probable, shown
from shortlist.simulation.population import DIMENSIONS, unit
from shortlist.simulation.project import project
from shortlist.simulation.world import World


@pytest.mark.parametrize(("rows", "close"), [(30_000, 0.99), (300, 0.6)])
def test_a_taste_is_recovered_the_better_the_more_was_shown(rows: int, close: float) -> None:
    rng = np.random.default_rng(2)
    taste = TASTE * np.asarray(unit(rng.standard_normal((1, DIMENSIONS)))[0], np.float64)
    vectors = np.asarray(unit(rng.standard_normal((rows, DIMENSIONS))), np.float64)
    looked = examination(rng.integers(1, 11, rows))
    clicked = rng.random(rows) < looked * sigmoid(vectors @ taste - 2)
    found = most_probable(vectors, np.full(rows, -2.0), looked, clicked)
    assert found @ taste / (np.linalg.norm(found) * TASTE) > close
    assert rows < 1_000 or np.linalg.norm(found) == pytest.approx(TASTE, rel=0.1)


def test_of_whom_nothing_is_known_nothing_is_claimed() -> None:
    nothing = np.empty(0)
    found = most_probable(np.empty((0, DIMENSIONS)), nothing, nothing, np.empty(0, np.bool_))
    assert found.tolist() == [0.0] * DIMENSIONS


def test_every_impression_is_read_from_the_log_with_its_click() -> None:
    world, log = World(seed=3, users=30, items=80, categories=5, days=10), MemoryLog(project.schemas)
    generate(world, log, 8_000)
    kinds = np.concatenate([np.asarray(batch.kinds)[batch.kind_codes] for batch in log.scan()]).tolist()
    user, item, position, at, clicked = shown(world, log)
    assert len(user) == kinds.count("impression")
    assert clicked.sum() == kinds.count("click")
    assert {position.min(), position.max()} == {1, 10}
    assert (at >= world.items.born[item]).all()
    assert clicked[position == 1].mean() > clicked[position == 10].mean()


def test_its_slates_lie_between_the_best_for_all_and_the_best() -> None:
    world, log = World(seed=3, users=30, items=200, categories=5, days=10), MemoryLog(project.schemas)
    history = generate(world, log, 30_000)
    knower, now = Knower(world, log), world.end
    count = len(world.items.category)
    worth = dict.fromkeys(("popular", "knower", "best"), 0.0)
    for number in range(30):
        user = f"u{number}"
        opened = [f"i{key % count}" for key in history.seen if key // count == number]
        slate = knower.slate(user, 10, now, opened)
        assert len(set(slate)) == 10
        assert not set(slate) & set(opened)
        worth["knower"] += world.slate_value(user, slate, now)
        worth["popular"] += world.slate_value(user, world.popular_slate(10, now, opened), now)
        worth["best"] += world.slate_value(user, world.best_slate(user, 10, now, opened), now)
    assert 1.3 * worth["popular"] < worth["knower"] < worth["best"]
    assert len(knower.slate("u0", 1_000, now, ())) == world.alive(now)
