"""The simulated world: its truth is the truth, its history obeys its own laws, and its users behave as stated."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.pipeline.query import Query, Slate
from shortlist.simulation.__main__ import main
from shortlist.simulation.behaviour import DAY_MS, GAINS, examination, respond
from shortlist.simulation.generate import generate, load, save
from shortlist.simulation.history import BLOCK_HOURS, CLICK, HIDE, IMPRESSION, ITEM, LIKE, USER, WATCH, History, Rows
from shortlist.simulation.live import Crowd, InProcess, OverHttp, ServiceError, Tally, run
from shortlist.simulation.policy import Shelves
from shortlist.simulation.project import project
from shortlist.simulation.world import World


def small(**parameters: int) -> World:
    return World(**{"seed": 3, "users": 40, "items": 120, "categories": 5, "days": 10, **parameters})


def everything(world: World, events: int, seed: int = 0) -> Rows:
    return np.concatenate(list(History(world, events, seed).blocks()))


def nothing_seen() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


# the truth


def test_the_best_slate_beats_every_other_slate() -> None:
    world = small(users=6, items=8)
    now = world.end + 14 * DAY_MS
    everyone = [f"i{number}" for number in range(8)]
    for user in ("u0", "u3", "u5"):
        by_value = max(itertools.permutations(everyone, 3), key=lambda slate: world.slate_value(user, slate, now))
        assert world.best_slate(user, 3, now) == by_value
        without = [item for item in everyone if item not in by_value[:2]]
        by_value_without = max(
            itertools.permutations(without, 3), key=lambda slate: world.slate_value(user, slate, now)
        )
        assert world.best_slate(user, 3, now, by_value[:2]) == by_value_without


def test_no_common_slate_beats_the_popular_one_on_average() -> None:
    world = small(users=6, items=8)
    now = world.end + 14 * DAY_MS
    pairs = itertools.permutations([f"i{number}" for number in range(8)], 2)
    best = max(pairs, key=lambda slate: sum(world.slate_value(f"u{user}", slate, now) for user in range(6)))
    assert world.popular_slate(2, now) == best


def test_the_expected_value_is_the_mean_gain_of_many_answers() -> None:
    world = small()
    rng = np.random.default_rng(0)
    slate = world.best_slate("u7", 3, world.end)
    gains = [sum(GAINS[event.kind] for event in world.answer("u7", slate, world.end, rng)) for _ in range(4_000)]
    error = np.std(gains) / np.sqrt(len(gains))
    assert np.mean(gains) == pytest.approx(world.slate_value("u7", slate, world.end), abs=4 * error)


def test_an_item_that_is_not_born_is_worth_nothing_and_never_in_a_best_slate() -> None:
    world = small()
    now = world.start + DAY_MS
    alive = world.alive(now)
    assert alive < 120
    assert world.expected_value("u0", [f"i{alive}"], now).tolist() == [0.0]
    assert len(world.best_slate("u0", 1_000, now)) == alive
    assert [event.keys["item"] for event in world.births(now, world.end)] == [
        f"i{number}" for number in range(alive, world.alive(world.end))
    ]


def test_fair_exposure_is_that_of_the_best_slates() -> None:
    world = small()
    users = ["u1", "u2", "u1"]
    seen = {"u2": world.best_slate("u2", 1, world.end)}
    exposure = world.fair_exposure(users, 4, world.end, seen)
    expected = np.zeros(world.alive(world.end))
    for user in users:
        for place, item in enumerate(world.best_slate(user, 4, world.end, seen.get(user, ()))):
            expected[int(item[1:])] += 1 / np.log2(2 + place)
    np.testing.assert_allclose(exposure, expected)
    assert exposure.sum() == pytest.approx(3 * examination(np.arange(1, 5)).sum())


def test_ids_of_another_world_are_named() -> None:
    world = small(users=2, items=3)
    for call in (
        lambda: world.expected_value("u2", ["i0"], world.end),
        lambda: world.expected_value("u0", ["i3"], world.end),
        lambda: world.slate_value("u0", ["film"], world.end),
        lambda: world.best_slate("", 1, world.end),
    ):
        with pytest.raises(KeyError, match="is not of this world"):
            call()


def test_position_bias_is_recovered_from_shuffled_slates() -> None:
    world = small(users=300, items=500)
    rng = np.random.default_rng(1)
    slates, k = 40_000, 10
    items = np.argsort(rng.random((slates, 30)), axis=1)[:, :k].ravel()  # a uniform shuffle
    users = np.repeat(rng.integers(0, 300, slates), k)
    positions = np.tile(np.arange(1, k + 1), slates)
    done = respond(world.chances(users, items, np.full(slates * k, world.end)), positions, rng)
    clicks = np.array([done.click[positions == position].sum() for position in range(1, k + 1)])
    curve = clicks / clicks[0]
    error = curve * np.sqrt(1 / clicks + 1 / clicks[0])
    assert (np.abs(curve - examination(np.arange(1, k + 1))) <= 4 * error).all()
    assert error.max() < 0.04  # the check is sharp enough to tell this curve from 1/p


# the policy


@pytest.fixture(params=[False, True], ids=["nothing seen", "some seen"])
def seen(request: pytest.FixtureRequest) -> NDArray[np.int64]:
    return np.array([1 * 12 + 0, 1 * 12 + 5, 2 * 12 + 1] if request.param else [], np.int64)


@pytest.mark.parametrize(("redraws", "n"), [(20, 60_000), (0, 8_000)], ids=["by rejection", "exactly"])
def test_propensities_are_the_frequencies_of_what_is_drawn(
    seen: NDArray[np.int64], redraws: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist.simulation.policy.REDRAWS", redraws)
    world = small(users=3, items=12, ahead=0)
    policy = Shelves(world).at(world.end)
    assert policy.known == 12
    items, propensity = policy.slates(np.full(n, 1), 3, seen, np.random.default_rng(5))
    hidden = {key - 12 for key in seen.tolist() if key // 12 == 1}
    assert not hidden & set(items.ravel().tolist())
    assert all(len(set(slate)) == 3 for slate in items[:500].tolist())
    for slot in range(3):
        # the same items above: their frequencies must be the propensities, which are constants there
        above = items[:, :slot]
        same = (above == above[0]).all(axis=1)
        frequency = np.bincount(items[same, slot], minlength=12) / same.sum()
        stated = np.zeros(12)
        stated[items[same, slot]] = propensity[same, slot]
        error = np.sqrt(stated * (1 - stated) / same.sum()) + 1e-12
        assert (np.abs(frequency - stated) <= 4.5 * error).all()
        # and inverse propensities count the items that could have been shown
        assert np.mean(1 / propensity[:, slot]) == pytest.approx(12 - len(hidden) - slot, rel=0.1)


def test_the_mixture_sums_to_one_for_every_user_and_moment() -> None:
    world = small()
    shelves = Shelves(world)
    users = np.arange(40)
    for now in (world.start, world.start + 3 * DAY_MS, world.end, world.end + 60 * DAY_MS):
        policy = shelves.at(now)
        items = np.tile(np.arange(policy.known), 40)
        mass = policy.mixture(policy.tastes(users), np.repeat(users, policy.known), items)
        assert mass.min() > 0
        np.testing.assert_allclose(mass.reshape(40, -1).sum(axis=1), 1.0)


def test_slates_end_where_a_user_has_seen_everything() -> None:
    world = small(users=2, items=4, categories=2, ahead=0)
    policy = Shelves(world).at(world.end)
    seen = np.array([0, 1, 2, 4 + 0, 4 + 1, 4 + 2, 4 + 3])
    items, propensity = policy.slates(np.array([0, 1]), 3, seen, np.random.default_rng(0))
    assert items.tolist() == [[3, -1, -1], [-1, -1, -1]]
    assert propensity[0, 0] == pytest.approx(1.0)


# the history


def test_a_history_is_in_the_order_of_time_and_about_as_long_as_asked() -> None:
    world = World(users=300, items=600)
    history = History(world, 60_000)
    rows = np.concatenate(list(history.blocks()))
    assert (np.diff(rows["at"]) >= 0).all()
    assert len(rows) == history.made + world.alive(world.end - 1)
    assert len(rows) == pytest.approx(60_000, rel=0.03)
    hours = rows["at"][rows["kind"] == IMPRESSION] % DAY_MS // 3_600_000
    assert np.isin(hours, [19, 20, 21]).sum() > 4 * np.isin(hours, [2, 3, 4]).sum()


def test_actions_follow_impressions_and_each_other() -> None:
    world = small()
    rows = everything(world, 20_000)
    of = {kind: rows[rows["kind"] == kind] for kind in range(7)}
    assert all(len(of[kind]) for kind in (USER, ITEM, IMPRESSION, CLICK, WATCH, LIKE, HIDE))
    for later, earlier in ((CLICK, IMPRESSION), (HIDE, IMPRESSION), (WATCH, CLICK), (LIKE, CLICK)):
        first: dict[tuple[int, int], int] = {}
        for user, item, at in of[earlier][["user", "item", "at"]].tolist():
            first.setdefault((user, item), at)
        assert all(first[user, item] < at for user, item, at in of[later][["user", "item", "at"]].tolist())
        assert len(of[later]) < len(of[earlier])
    assert np.isfinite(of[WATCH]["seconds"]).all()


def test_only_what_exists_is_shown_and_nothing_that_was_opened() -> None:
    world = small()
    rows = everything(world, 20_000)
    shown = rows[rows["kind"] == IMPRESSION]
    assert (world.items.born[shown["item"]] < shown["at"]).all()
    announced: dict[str, set[int]] = {"user": set(), "item": set()}
    for kind, user, item in rows[["kind", "user", "item"]].tolist():
        if kind in (USER, ITEM):
            name, number = ("user", user) if kind == USER else ("item", item)
            assert number not in announced[name]
            announced[name].add(number)
        else:
            assert user in announced["user"]
            assert item in announced["item"]
    block = (rows["at"] - world.start) // (BLOCK_HOURS * 3_600_000)
    opened: dict[tuple[int, int], int] = {}
    for kind, user, item, at_block in zip(rows["kind"], rows["user"], rows["item"], block, strict=True):
        if kind == CLICK:
            opened.setdefault((user, item), at_block)
        elif kind == IMPRESSION:
            # an action in a block's last hour may fall into the next; its impression never does
            assert at_block <= opened.get((user, item), at_block) + 1
    for request in np.unique(shown["request"])[:200]:
        slate = shown[shown["request"] == request]
        assert slate["position"].tolist() == list(range(1, len(slate) + 1))
        assert len(set(slate["item"].tolist())) == len(slate)


def test_the_same_parameters_make_the_same_history_and_others_another() -> None:
    first = everything(small(), 5_000)
    assert first.tobytes() == everything(small(), 5_000).tobytes()
    assert first.tobytes() != everything(small(), 5_000, seed=1).tobytes()
    assert first.tobytes() != everything(small(seed=4), 5_000).tobytes()


def test_the_history_does_not_depend_on_the_chunks(tmp_path: Path) -> None:
    tables = {}
    for chunk in (700, 50_000):
        parts = tmp_path / str(chunk)
        generate(small(), parts, 5_000, chunk=chunk)
        files = sorted(parts.glob("part-*.parquet"))
        sizes = [pq.read_metadata(file).num_rows for file in files]
        assert set(sizes[:-1]) <= {chunk}
        tables[chunk] = pa.concat_tables([pq.read_table(file) for file in files], promote_options="default")
    assert tables[700].to_pylist() == tables[50_000].to_pylist()


@pytest.mark.parametrize(("users", "items", "categories"), [(0, 5, 2), (1, 1, 1), (1, 30, 40), (3, 1, 20), (5, 0, 3)])
def test_tiny_worlds_have_histories_too(users: int, items: int, categories: int) -> None:
    world = World(users=users, items=items, categories=categories, days=5)
    rows = everything(world, 300)
    assert len(rows) <= 330
    assert (rows["kind"] == ITEM).sum() == world.alive(world.end)
    assert not (rows["kind"] == IMPRESSION).any() or (users and items)
    if users:
        assert len(world.best_slate("u0", 10, world.end)) == min(10, world.alive(world.end))
        assert len(world.popular_slate(10, world.end)) == min(10, world.alive(world.end))


def test_what_a_world_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        World(users=-1)
    with pytest.raises(ValueError, match="at least"):
        World(categories=0)
    with pytest.raises(ValueError, match="too few"):
        History(World(items=2_000), 100)


def test_attributes_in_tables_are_those_of_single_events(tmp_path: Path) -> None:
    world = small()
    generate(world, tmp_path, 3_000)
    rows = pq.read_table(tmp_path / "part-000000000000.parquet").to_pylist()
    for kind, attributes in (("item", world.item_attributes), ("user", world.user_attributes)):
        told = [row for row in rows if row["kind"] == kind]
        assert told
        for row in told:
            expected = attributes(int(row[kind][1:]))
            assert {name: row[name] for name in expected} == expected
    with pytest.raises(ValueError, match="empty directory"):
        generate(world, tmp_path, 3_000)


def test_a_saved_world_comes_back(tmp_path: Path) -> None:
    history = History(small(), 3_000)
    rows = np.concatenate(list(history.blocks()))
    save(tmp_path / "world.npz", history)
    world, seen = load(tmp_path / "world.npz")
    assert world.parameters == history.world.parameters
    opened = rows[rows["kind"] == CLICK]
    assert set(seen.tolist()) == set((opened["user"].astype(int) * 120 + opened["item"]).tolist())
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match="does not hold a simulated world"):
        load(tmp_path / "broken.npz")


def test_a_log_takes_the_whole_history_and_an_interrupted_one_goes_on() -> None:
    world, whole, broken = small(), MemoryLog(project.schemas), MemoryLog(project.schemas)
    generate(world, whole, 5_000, chunk=600)

    def interrupt(done: int, _: int) -> None:
        if done > 2_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(world, broken, 5_000, chunk=600, progress=interrupt)
    assert 2_000 < broken.position < whole.position
    generate(world, broken, 5_000, chunk=700)
    tables = [pa.concat_tables(batch.table for batch in log.scan()) for log in (whole, broken)]
    assert tables[0].num_rows == whole.position == pytest.approx(5_000, rel=0.1)
    assert tables[0].to_pylist() == tables[1].to_pylist()
    assert tables[0]["received"].equals(tables[0]["at"])
    with pytest.raises(ValueError, match="another simulated world"):
        generate(small(seed=9), whole, 5_000)
    with pytest.raises(ValueError, match="simulated events, the first one at line"):
        generate(world, MemoryLog([project.user.schema]), 5_000)


# users in front of a service


class Oracle:
    """The ranker that knows the truth, or shows anything."""

    def __init__(self, world: World, knows: bool) -> None:
        self.world, self.knows = world, knows

    def rank(self, query: Query) -> Slate:
        assert query.user is not None
        items: Sequence[str] = self.world.best_slate(query.user, 120, query.now)
        items = items[: query.k] if self.knows else sorted(items)[: query.k]
        return Slate(query.request, tuple(items), tuple(float(-place) for place in range(len(items))))


class Clock:
    """A minute passes between two looks at it."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 60_000
        return self.now


def crowd(world: World, knows: bool, seed: int = 0) -> tuple[Crowd, MemoryLog]:
    log = MemoryLog(project.schemas)
    service = InProcess(Oracle(world, knows), log)
    return Crowd(world, service, np.random.default_rng(seed), 10, nothing_seen(), Clock(world.end)), log


def test_a_ranker_that_knows_the_truth_is_the_best_until_it_repeats_itself() -> None:
    world = small()
    first, _ = crowd(world, knows=True)
    assert first.turn().ratio == 1.0
    ignorant, _ = crowd(world, knows=False)
    tallies: list[Tally] = []
    total = run(ignorant, range(30), tallies.append, every=12)
    assert [tally.requests for tally in tallies] == [12, 12, 6]
    assert total.requests == 30
    assert 0 < total.value < total.popular < total.best
    assert "30 requests" in str(total)


def test_what_users_do_and_what_is_born_reaches_the_log_in_process() -> None:
    world = small()
    users, log = crowd(world, knows=True)
    users.clock = Clock(world.end + 3 * DAY_MS)
    run(users, range(60))
    events = [event for batch in log.scan() for event in batch.table.to_pylist()]
    kinds = [event["kind"] for event in events]
    assert kinds.count("item") == world.alive(world.end + 3 * DAY_MS + 120 * 60_000) - world.alive(world.end)
    assert kinds.count("user") == len({event["user"] for event in events if event["user"]})
    opened = {(event["user"], event["item"]) for event in events if event["kind"] == "click"}
    assert opened == {(f"u{user}", item) for user, items in users.opened.items() for item in items}
    assert opened


def test_what_users_saw_in_the_history_is_not_counted_among_the_best() -> None:
    world = small(users=1)
    best = world.best_slate("u0", 20, world.end)
    seen = np.sort([int(item[1:]) for item in best[:10]])
    service = InProcess(Oracle(world, knows=True), MemoryLog(project.schemas))
    only = Crowd(world, service, np.random.default_rng(0), 1, seen, lambda: world.end)
    assert only.turn().best == pytest.approx(world.slate_value("u0", best[10:], world.end))
    with pytest.raises(ValueError, match="2 users are asked for"):
        Crowd(world, service, np.random.default_rng(0), 2)


def test_the_command_line_writes_worlds_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "w"
    assert main(["--write", str(to), "--users", "20", "--items", "50", "--days", "5", "--events", "2000"]) == 0
    assert "slates shown" in capsys.readouterr().out
    world, seen = load(to / "world.npz")
    assert len(seen) > 0
    assert main(["--write", str(tmp_path / "x"), "--items", "500", "--events", "10"]) == 2
    assert "too few" in capsys.readouterr().err
    address = f"http://127.0.0.1:{unused_port()}"
    assert main(["--url", address, "--world", str(tmp_path / "none.npz")]) == 2
    assert main(["--url", address, "--world", str(to / "world.npz"), "--users", "5", "--seconds", "5"]) == 1
    assert "is the service running there?" in capsys.readouterr().err
    with pytest.raises(ServiceError):
        OverHttp(address).recommend("u0", 10, world.end)
    with pytest.raises(ValueError, match="no address"):
        OverHttp("ftp://host")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
