"""A small world whose best ranking is known goes round the whole loop, with nothing but the real parts.

The history is generated, models are trained and published, a service answers the world's users over HTTP, they act, and
what the service showed is held against the best slates that there were.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shortlist.events.sqlite import SqliteLog
from shortlist.loop import Turn, learn
from shortlist.monitoring.skew import audit
from shortlist.serving.running import Running
from shortlist.settings import Settings
from shortlist.simulation.__main__ import main
from shortlist.simulation.behaviour import DAY_MS
from shortlist.simulation.generate import generate, save
from shortlist.simulation.history import CLICK, History
from shortlist.simulation.live import Crowd, OverHttp, Tally, run
from shortlist.simulation.project import project
from shortlist.simulation.world import World

pytestmark = pytest.mark.slow

DAYS, EVENTS, REQUESTS = 40, 60_000, 120


@dataclass
class Round:
    """What one round came to: the tally of what was shown, of what popularity would have shown, and the slates."""

    settings: Settings
    turn: Turn
    shown: Tally
    popular: float
    slates: list[Asked]


@dataclass(frozen=True)
class Asked:
    """One slate: for whom, what, when, and what the user had opened by then."""

    user: str
    slate: tuple[str, ...]
    now: int
    opened: frozenset[str]


class Noticing(OverHttp):
    """The service, with every slate kept."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.slates: list[Asked] = []
        self.crowd: Crowd | None = None

    def recommend(self, user: str, k: int, now: int) -> tuple[str, ...]:
        slate = super().recommend(user, k, now)
        assert self.crowd is not None
        self.slates.append(Asked(user, slate, now, frozenset(self.crowd.opened_by(int(user[1:])))))
        return slate


def most_clicked(world: World) -> list[str]:
    """What a ranking by popularity shows: the items with the most clicks of the last thirty days."""
    rows = np.concatenate(list(History(world, EVENTS).blocks()))
    recent = rows[(rows["kind"] == CLICK) & (rows["at"] > world.end - 30 * DAY_MS)]
    clicks = np.bincount(recent["item"], minlength=len(world.items.category))
    return [f"i{item}" for item in np.argsort(-clicks, kind="stable")[:100]]


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Round:
    folder: Path = tmp_path_factory.mktemp("loop")
    settings = Settings(folder=folder, port=0, log="sqlite:log.db", vector_sample=1.0, deadline_ms=5_000)
    # the service knows only the time that it is, so the history must end today
    midnight = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    world = World(seed=5, users=300, items=600, categories=12, start=midnight - DAYS * DAY_MS, days=DAYS)
    log = SqliteLog(settings.place("log"), project.schemas)
    history = generate(world, log, EVENTS)
    log.close()
    turn = learn(project, settings, 0, lambda *_: None)
    with Running(project, settings) as running:
        running.wait_ready()
        service = Noticing(running.url)
        service.crowd = Crowd(world, service, np.random.default_rng(1), 60, history.seen)
        shown = run(service.crowd, range(REQUESTS))
        service.close()
        save(folder / "world.npz", history)
        command = ["--url", running.url, "--world", str(folder / "world.npz"), "--users", "20", "--seconds", "1"]
        assert main(command) == 0
    clicked = most_clicked(world)
    popular = sum(
        world.slate_value(asked.user, [item for item in clicked if item not in asked.opened][:10], asked.now)
        for asked in service.slates
    )
    return Round(settings, turn, shown, popular, service.slates)


def test_what_is_served_is_far_better_than_popularity_and_well_on_the_way_to_the_best(round_: Round) -> None:
    shown = round_.shown
    assert shown.requests == REQUESTS
    assert round_.popular < 0.3 * shown.best
    assert shown.value > 2 * round_.popular
    assert shown.value > 0.45 * shown.best


def test_every_slate_is_full_and_holds_nothing_that_its_user_opened(round_: Round) -> None:
    for asked in round_.slates:
        assert len(asked.slate) == len(set(asked.slate)) == 10
        assert not asked.opened & set(asked.slate)


def test_the_log_holds_what_was_shown_and_what_was_done_and_the_audit_agrees(round_: Round) -> None:
    log = SqliteLog(round_.settings.place("log"), project.schemas, read_only=True)
    first = round_.turn.release.manifest.log_position
    shown: list[tuple[str, str]] = []
    kinds = set()
    for batch in log.scan(first):
        kinds |= {kind for kind in batch.kinds if batch.of_kind(kind).any()}
        table = batch.table.filter(batch.of_kind("impression"))
        shown += zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True)
        assert set(table["impression.release"].to_pylist()) <= {round_.turn.release.version}
    noticed = [(asked.user, item) for asked in round_.slates for item in asked.slate]
    assert shown[: len(noticed)] == noticed
    assert len(shown) > len(noticed)  # what the command asked for
    assert {"impression", "click", "user"} <= kinds
    report = audit(project.feature_set(), log, "user", "item")
    assert report.vectors == len(shown)
    assert report.passed
