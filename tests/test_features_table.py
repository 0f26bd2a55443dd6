"""The feature table as its callers use it: ids, broadcasting, context, lists, threads, unusable snapshots."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features import snapshot
from shortlist.features.columns import Columns, Rows
from shortlist.features.definitions import EventType, ratio, request_feature
from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import combined, hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.features.request import RequestFeatureError
from shortlist.features.snapshot import SnapshotError
from shortlist.features.table import FeatureTable
from tests.oracles import space_saving

user = Entity("user", age=int)
film = Entity("film", genres=list[str], year=int, title=str)
watch = EventType("watch", user, film, seconds=float | None, device=str)
NOW = 1_700_000_000_000
GOLDEN = ["0000000000000001", "65c8584321489c0b", "8c7b1efa6ec275f9", "f60267f8b5ba9d83", "e20a6b60ad6dda84"]
GOLDEN_PAIR = "8322ba88b7e91777"


@request_feature
def age_at_release(user_age: Any, film_year: Any, now: Any) -> Any:
    return user_age - (now / 31_557_600_000 + 1970 - film_year)


@request_feature
def on_a_tv(device: Any) -> Any:
    return device == "tv"


@request_feature
def doubled(age_at_release: Any) -> Any:
    return 2 * age_at_release


FEATURES = FeatureSet(
    [
        doubled,
        watch.by(user).count("1h"),
        watch.by(film).mean("seconds"),
        watch.by(user).last("film", 3),
        watch.by(user).top_k("device", 2),
        watch.by(user).share("film.genres"),
        ratio(watch.by(film).sum("seconds"), watch.by(film).count()),
        age_at_release,
        on_a_tv,
    ],
    (user, film),
    {"device": str},
)


def world() -> tuple[MemoryLog, FeatureTable]:
    log, table = MemoryLog([watch, user.schema, film.schema]), FeatureTable(FEATURES)
    log.subscribe(table.update)
    events: list[dict[str, Any]] = [
        {"kind": "user", "user": "ada", "age": 36},
        {"kind": "film", "film": "alien", "genres": ["horror", "sci-fi"], "year": 1979, "title": "Alien"},
        {"kind": "film", "film": "heat", "genres": ["crime"], "year": 1995},
        {"kind": "watch", "user": "ada", "film": "alien", "seconds": 60.0, "device": "tv"},
        {"kind": "watch", "user": "ada", "film": "heat", "seconds": 30.0, "device": "web"},
        {"kind": "watch", "user": "ada", "film": "alien", "seconds": None, "device": "tv"},
        {"kind": "film", "film": "heat", "available": False, "genres": ["crime", "drama"]},
    ]
    for event in events:
        receipt = log.append([{"at": NOW, **{k: v for k, v in event.items() if v is not None}}], received=NOW)
        assert not receipt.refusals
    return log, table


def test_one_user_and_several_films() -> None:
    _, table = world()
    films = ["alien", "heat", "nobody's"]
    columns = table.read({"user": ["ada"], "film": films}, NOW, {"device": "tv"})
    assert columns.names == FEATURES.columns
    assert columns.position == 7
    assert columns.values.shape == (len(FEATURES.columns), 3)
    assert columns.values.flags.c_contiguous
    assert columns["user_watch_count_1h"].tolist() == [3, 3, 3]
    np.testing.assert_array_equal(columns["film_watch_mean_seconds"], [60, 30, math.nan])
    np.testing.assert_allclose(columns["user_watch_share_film_genres"], [2 / 3, 1 / 6, math.nan])
    np.testing.assert_array_equal(columns["film_year"], [1979, 1995, math.nan])
    assert columns["on_a_tv"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(columns["doubled"], 2 * columns["age_at_release"])
    assert columns["user_watch_last_n_film_3"].shape == (3, 3)
    assert table.text("user_watch_last_n_film_3", columns["user_watch_last_n_film_3"][2]) == ["alien", "heat", "alien"]
    assert table.text("user_watch_top_k_device_2", columns["user_watch_top_k_device_2"][0]) == ["tv", "web"]


def test_hashes_are_read_like_ids_and_single_rows_like_many() -> None:
    _, table = world()
    films = ["alien", "heat", "nobody's"]
    many = table.read({"user": ["ada"] * 3, "film": films}, np.full(3, NOW + 5), {"device": ["tv", "web", "tv"]})
    hashed = table.read({"user": hash_strings(["ada"]), "film": hash_strings(films)}, NOW + 5, {"device": "tv"})
    for row, name in enumerate(films):
        single = table.read({"user": ["ada"], "film": [name]}, NOW + 5, {"device": "tv"})
        known = [n != "on_a_tv" for n in single.names]
        assert single.values[:, 0].tobytes() == hashed.values[:, row].tobytes()
        assert single.values[known, 0].tobytes() == many.values[known, row].tobytes()
    assert many["on_a_tv"].tolist() == [1, 0, 1]


def test_only_what_the_ids_are_enough_for() -> None:
    _, table = world()
    mine = table.read({"user": ["ada"]}, NOW)
    assert mine.names == ("user_watch_count_1h", "on_a_tv", "user_age")
    assert set(mine.lists) == {"user_watch_last_n_film_3", "user_watch_top_k_device_2"}
    assert mine["on_a_tv"].tolist() == [0]  # no device was given: NaN is not "tv"
    chosen = table.read({"user": ["ada"]}, NOW, columns=["user_age", "user_watch_last_n_film_3"])
    assert (chosen.names, list(chosen.lists)) == (("user_age",), ["user_watch_last_n_film_3"])
    with pytest.raises(ValueError, match="ids of film are missing"):
        table.read({"user": ["ada"]}, NOW, columns=["film_year"])
    with pytest.raises(KeyError, match="did you mean 'film_year'"):
        table.read({"film": ["heat"]}, NOW, columns=["film_years"])
    with pytest.raises(ValueError, match="different lengths: 2 of user, 3 of film"):
        table.read({"user": ["ada", "bob"], "film": ["a", "b", "c"]}, NOW)


def test_attributes_are_those_known_at_the_position() -> None:
    log, _ = world()
    every = list(range(log.position + 1))
    rows = Rows({"user": ["ada"], "film": ["heat"]}, every, [NOW] * len(every), {"device": "tv"})
    replayed, table = replay(log, FEATURES, rows), FeatureTable(FEATURES)
    for position in every:
        for batch in log.scan(table.position, position):
            table.update(batch)
        live = table.read({"user": ["ada"], "film": ["heat"]}, NOW, {"device": "tv"})
        assert live.values[:, 0].tobytes() == replayed.values[:, position].tobytes()
    np.testing.assert_array_equal(replayed["film_year"], [math.nan] * 3 + [1995] * 5)
    np.testing.assert_allclose(replayed["user_watch_share_film_genres"], [math.nan] * 4 + [0, 1 / 2, 1 / 3, 1 / 6])


def test_a_replay_reads_just_what_is_asked_for() -> None:
    log, _ = world()
    rows = Rows({"user": ["ada"] * 3, "film": ["heat"] * 3}, [2, 4, log.position], [NOW] * 3)
    every = replay(log, FEATURES, rows)
    chosen = replay(log, FEATURES, rows, ["film_year", "user_watch_last_n_film_3"])
    assert (chosen.names, list(chosen.lists)) == (("film_year",), ["user_watch_last_n_film_3"])
    assert chosen["film_year"].tobytes() == every["film_year"].tobytes()
    np.testing.assert_array_equal(chosen["user_watch_last_n_film_3"], every["user_watch_last_n_film_3"])
    with pytest.raises(ValueError, match="ids of film are missing"):
        replay(log, FEATURES, Rows({"user": ["ada"]}, [1], [NOW]), ["film_year"])
    with pytest.raises(KeyError, match="did you mean 'film_year'"):
        replay(log, FEATURES, rows, ["film_years"])


def test_no_candidates_and_nobody_known() -> None:
    _, table = world()
    none = table.read({"user": ["ada"], "film": []}, NOW)
    assert none.values.shape == (len(FEATURES.columns), 0)
    assert none.lists["user_watch_last_n_film_3"].shape == (0, 3)
    stranger = table.read({"user": ["x" * 1000 + "é"], "film": [""]}, NOW)
    assert stranger["user_watch_count_1h"].tolist() == [0]
    assert stranger["user_watch_last_n_film_3"].tolist() == [[0, 0, 0]]
    empty = FeatureTable(FEATURES).read({"user": ["ada"], "film": ["heat"]}, NOW)
    assert empty["user_watch_count_1h"].tolist() == [0]


def test_a_batch_that_comes_twice_counts_once() -> None:
    log, table = world()
    before = table.read({"user": ["ada"], "film": ["alien"]}, NOW)
    for batch in [*log.scan(2), *log.scan()]:
        table.update(batch)
    assert table.read({"user": ["ada"], "film": ["alien"]}, NOW).values.tobytes() == before.values.tobytes()


def test_entities_know_ids_attributes_and_availability() -> None:
    _, table = world()
    films = table.entities["film"]
    assert isinstance(films, Entities)
    assert list(films.ids) == ["alien", "heat"]
    assert len(films) == 2
    assert films.index_of(["heat", "unknown"]).tolist() == [1, -1]
    assert films.index_of(films.hashes).tolist() == [0, 1]
    assert films.available.tolist() == [True, False]
    np.testing.assert_array_equal(films.attribute("year"), [1979, 1995])
    genres = films.attribute("genres")
    assert isinstance(genres, Ragged)
    assert genres.offsets.tolist() == [0, 2, 4]
    assert films.text(genres.values) == ["horror", "sci-fi", "crime", "drama"]
    with pytest.raises(KeyError, match="did you mean 'genres'"):
        films.attribute("genre")


def test_forgotten_history_leaves_what_is_known_now() -> None:
    log, table = MemoryLog([film.schema]), FeatureTable(FEATURES)
    log.subscribe(table.update)
    for turn in range(30):
        genres = [[f"g{turn}", f"h{n}"][: 1 + n % 2] for n in range(100)]
        log.append(
            [{"kind": "film", "at": NOW, "film": f"f{n}", "year": turn, "genres": genres[n]} for n in range(100)], NOW
        )
    films = table.entities["film"]
    assert films.attributes["year"].previous.size < 3000
    np.testing.assert_array_equal(films.attribute("year"), np.full(100, 29.0))
    found = films.attribute("genres")
    assert isinstance(found, Ragged)
    assert films.text(found.values)[:3] == ["g29", "g29", "h1"]


def test_rows_that_do_not_fit_are_refused() -> None:
    log, _ = world()
    with pytest.raises(ValueError, match="the log ends at 7"):
        replay(log, FEATURES, Rows({"user": ["ada"], "film": ["heat"]}, [8], [NOW]))
    with pytest.raises(ValueError, match="2 values of film for 1 rows"):
        replay(log, FEATURES, Rows({"user": ["ada"], "film": ["heat", "alien"]}, [7], [NOW]))
    assert len(replay(log, FEATURES, Rows({"user": [], "film": []}, [], []))) == 0


def test_a_request_feature_that_fails_is_named() -> None:
    @request_feature
    def broken(user_age: Any) -> Any:
        return user_age["age"]

    with pytest.raises(RequestFeatureError, match=r"broken\(user_age\) failed: IndexError"):
        FeatureTable(FeatureSet([broken], (user,))).read({"user": ["ada"]}, NOW)


def test_fingerprints_tell_definitions_apart() -> None:
    one = FeatureSet([watch.by(user).count("1h")], (user,)).fingerprint
    assert one == FeatureSet([watch.by(user).count("1h")], (user,)).fingerprint
    others = [
        FeatureSet([watch.by(user).count("2h")], (user,)),
        FeatureSet([watch.by(user).count("1h", hop="10m")], (user,)),
        FeatureSet([watch.where("device", "==", "tv").by(user).count("1h").named("user_watch_count_1h")], (user,)),
    ]
    assert one not in [other.fingerprint for other in others]


def test_reads_while_updating_see_whole_events() -> None:
    counts = FeatureSet([watch.by(user).count(), watch.by(user).sum("seconds"), watch.by().count()], (user,))
    log, table = MemoryLog([watch]), FeatureTable(counts)
    log.subscribe(table.update)
    wrong: list[Columns] = []
    done = threading.Event()

    def reader() -> None:
        while not done.is_set():
            columns = table.read({"user": ["ada", "bob"]}, NOW)
            count, total, everyone, _ = columns.values
            if not (count[0] == total[0] and count[1] == 0 and everyone[0] == count[0] == columns.position):
                wrong.append(columns)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    event = {"kind": "watch", "at": NOW, "user": "ada", "film": "heat", "seconds": 1.0, "device": "tv"}
    for size in [1, 10, 1000] * 10:
        log.append([event] * size, received=NOW)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert table.read({"user": ["ada"]}, NOW).values[0, 0] == log.position


def snapshot_of(table: FeatureTable, place: Path) -> Path:
    table.snapshot(place / "features.snapshot")
    return place / "features.snapshot"


def test_a_snapshot_is_restored_and_goes_on(tmp_path: Path) -> None:
    log, table = world()
    path = snapshot_of(table, tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["features.snapshot"]
    other = FeatureTable(FEATURES)
    other.restore(path)
    log.subscribe(other.update)
    event = {"kind": "watch", "at": NOW, "user": "bob", "film": "new", "seconds": 5.0, "device": "phone"}
    log.append([event], received=NOW)
    asked: dict[str, Any] = {"user": ["ada", "bob", "x"], "film": ["new", "heat", "alien"]}
    assert other.read(asked, NOW).values.tobytes() == table.read(asked, NOW).values.tobytes()
    assert other.entities["film"].ids == ["alien", "heat", "new"]
    snapshot_of(other, tmp_path)  # over the file that is mapped


def test_while_a_snapshot_is_copied_readers_go_on_and_updates_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, table = world()
    begun, go_on, contents, before = threading.Event(), threading.Event(), snapshot.contents, table.position

    def slow_contents(of: FeatureTable) -> snapshot.Content:
        begun.set()
        assert go_on.wait(10)
        return contents(of)

    monkeypatch.setattr(snapshot, "contents", slow_contents)
    log.subscribe(table.update)
    event = {"kind": "watch", "at": NOW, "user": "bob", "film": "new", "seconds": 5.0, "device": "phone"}
    copying = threading.Thread(target=table.snapshot, args=(tmp_path / "features.snapshot",))
    copying.start()
    assert begun.wait(10)
    writing = threading.Thread(target=log.append, args=([event],), kwargs={"received": NOW})
    writing.start()
    assert table.read({"user": ["ada"]}, NOW).position == before  # would wait for ever if it waited for the copy
    writing.join(0.05)
    assert table.position == before
    go_on.set()
    for thread in (copying, writing):
        thread.join(10)
    restored = FeatureTable(FEATURES)
    restored.restore(tmp_path / "features.snapshot")
    assert (restored.position, table.position) == (before, before + 1)


def test_damaged_snapshots_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    _, table = world()
    path = snapshot_of(table, tmp_path)
    whole = path.read_bytes()
    fresh, unsaid = FeatureTable(FEATURES), 0
    for place in [3, 30, 60, *range(4096, len(whole), 997)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        try:
            fresh.restore(path)
        except SnapshotError as error:
            unsaid += "rebuild the table from the log" not in str(error)
        else:  # only padding between sections may change unnoticed
            assert whole[place] == 0
            fresh = FeatureTable(FEATURES)
    assert (unsaid, fresh.position) == (0, 0)
    for length in [0, 10, 40, 4096, len(whole) // 2, len(whole) - 4096]:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError):
            fresh.restore(path)
    with pytest.raises(SnapshotError, match="cannot be read"):
        fresh.restore(tmp_path / "absent")


def test_a_snapshot_of_other_features_is_refused(tmp_path: Path) -> None:
    _, table = world()
    path = snapshot_of(table, tmp_path)
    with pytest.raises(SnapshotError, match="written for other features"):
        FeatureTable(FeatureSet([watch.by(user).count()], (user, film))).restore(path)


@pytest.mark.parametrize("error", [0.2, 0.065])
def test_distinct_keeps_its_stated_error(error: float) -> None:
    """Root mean square error over 200 users, from few values over the middle range to many."""
    keys = 200
    for values in (5, 100, 640, 2_000):
        log, table = MemoryLog([watch]), FeatureTable(FeatureSet([watch.by(user).distinct("device", error=error)]))
        log.subscribe(table.update)
        users = np.repeat([f"u{number}" for number in range(keys)], values)
        devices = [f"{number % values} of {name}" for number, name in enumerate(users)]
        columns = {"kind": ["watch"] * len(users), "at": [NOW] * len(users), "user": users, "film": ["x"] * len(users)}
        assert log.append(pa.table({**columns, "device": devices}), received=NOW).accepted == keys * values
        found = table.read({"user": [f"u{number}" for number in range(keys)]}, NOW).values[0]
        assert math.sqrt(np.mean((found / values - 1) ** 2)) < 1.15 * error


@pytest.mark.parametrize("seed", range(5))
def test_top_k_is_space_saving_where_values_outnumber_counters(seed: int) -> None:
    drawn = np.random.default_rng(seed).zipf(1.3, 300) % 60
    log, table = MemoryLog([watch]), FeatureTable(FeatureSet([watch.by(user).top_k("device", 6)], (user,)))
    log.subscribe(table.update)
    devices = [f"d{number}" for number in drawn]
    log.append(
        [{"kind": "watch", "at": NOW, "user": "ada", "film": "heat", "device": device} for device in devices], NOW
    )
    found = table.read({"user": ["ada"]}, NOW).lists["user_watch_top_k_device_6"]
    assert table.text("user_watch_top_k_device_6", found) == space_saving(devices, 24)[:6]


def test_hashes_are_what_they_were() -> None:
    """State outlives releases: a hash that changes needs a new version of the law."""
    words = hash_strings(["", "ada", "exactly8", "more than sixteen bytes", "ünïcode", None])
    assert words.tolist()[-1] == 0
    assert [f"{word:016x}" for word in words.tolist()[:-1]] == GOLDEN
    assert f"{combined(words[1:2], words[2:3])[0]:016x}" == GOLDEN_PAIR


def test_hashes_do_not_collide() -> None:
    names = [f"u{n}" for n in range(200_000)] + [f"{n:x}-{n * 7919:x}" for n in range(200_000)]
    hashes = hash_strings(names)
    assert len(np.unique(hashes)) == len(names)
    for bits in (hashes & 1023, hashes >> np.uint64(54)):
        counts = np.bincount(bits.astype(np.int64), minlength=1024)
        assert abs(counts - len(names) / 1024).max() < 6 * math.sqrt(len(names) / 1024)


CROWDED = """
import sys, threading, time
import numpy as np
from tests.test_features_table import NOW, known_films
sys.setswitchinterval(1e-4)
table, ids = known_films()
expected, over = table.read(ids, NOW).values, threading.Event()

def allocate():
    while not over.is_set():
        np.full(len(ids["film"]), 2**40)

threads = [threading.Thread(target=allocate) for _ in range(2)]
for thread in threads:
    thread.start()
end, same = time.monotonic() + 2, True
while time.monotonic() < end:
    same = same and np.array_equal(table.read(ids, NOW).values, expected, equal_nan=True)
over.set()
print(same)
"""


def known_films() -> tuple[FeatureTable, dict[str, Any]]:
    log, table = MemoryLog([watch]), FeatureTable(FeatureSet([watch.by(film).mean("seconds", "1h")], [user, film]))
    log.subscribe(table.update)
    films = [f"f{number}" for number in range(500)]
    log.append(
        [{"kind": "watch", "at": NOW, "user": "u", "film": name, "seconds": 1.0, "device": "tv"} for name in films]
    )
    return table, {"film": hash_strings(films)}


def test_a_read_keeps_its_memory_to_itself_while_other_threads_ask_for_some() -> None:
    crowded = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", CROWDED], env=crowded, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2_000:]
