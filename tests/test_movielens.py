"""Every MovieLens release is read into the same events, whatever its format."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shortlist.movielens import DAY_MS, MovieLens, MovieLensError, read_movielens, shift_to

FILMS = [("1", "Toy Story (1995)", "Animation|Children's"), ("3", "Léon: The Professional (1994)", "Action")]
RATINGS = [(1, 3, 4, 1000), (2, 1, 5, 500), (2, 3, 3, 2000)]


def write_csv(root: Path) -> None:
    films = "".join(f'{film},"{title}",{genres}\n' for film, title, genres in FILMS)
    (root / "movies.csv").write_text("movieId,title,genres\n" + films + "9,Nobody saw it,(no genres listed)\n", "utf-8")
    ratings = "".join(f"{user},{film},{stars}.0,{at}\n" for user, film, stars, at in RATINGS)
    (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    (root / "tags.csv").write_text('userId,movieId,tag,timestamp\n1,3,"so ""good"", really",1500\n1,3,NA,1501\n')


def write_1m(root: Path) -> None:
    films = "".join(f"{film}::{title}::{genres}\n" for film, title, genres in FILMS)
    (root / "movies.dat").write_text(films, "latin-1")
    (root / "ratings.dat").write_text("".join(f"{u}::{f}::{s}::{at}\n" for u, f, s, at in RATINGS))
    (root / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")


def write_10m(root: Path) -> None:
    films = "".join(f"{film}::{title}::{genres}\n" for film, title, genres in FILMS)
    (root / "movies.dat").write_text(films, "utf-8")
    (root / "ratings.dat").write_text("".join(f"{u}::{f}::{s}.5::{at}\n" for u, f, s, at in RATINGS))
    (root / "tags.dat").write_text("1::3::so good:: really::1500\n")


def write_100k(root: Path) -> None:
    flags = {"1": "0|0|0|1|1", "3": "0|1|0|0|0"}
    films = "".join(f"{f}|{t}|01-Jan-1995||http://x|{flags[f]}{'|0' * 14}\n" for f, t, _ in FILMS)
    (root / "u.item").write_text(films, "latin-1")
    (root / "u.data").write_text("".join(f"{u}\t{f}\t{s}\t{at}\n" for u, f, s, at in RATINGS))
    (root / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")


FORMATS: dict[str, Callable[[Path], None]] = {"csv": write_csv, "1m": write_1m, "10m": write_10m, "100k": write_100k}


def events(release: MovieLens, shift: int = 0, rows: int = 1000) -> list[dict[str, object]]:
    tables = list(release.events(shift, rows))
    rows_read = [row for table in tables for row in table.to_pylist()]
    return [{name: row[name] for name in sorted(row) if row[name] is not None} for row in rows_read]


@pytest.fixture(params=list(FORMATS.values()), ids=list(FORMATS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write: Callable[[Path], None] = request.param
    write(tmp_path)
    return tmp_path


def test_every_format_gives_the_same_watches_in_time_order(folder: Path) -> None:
    found = [event for event in events(read_movielens(folder)) if event["kind"] == "watch"]
    assert [(event["user"], event["film"], event["at"]) for event in found] == [
        ("2", "1", 500_000),
        ("1", "3", 1_000_000),
        ("2", "3", 2_000_000),
    ]
    assert [int(event["stars"]) for event in found] == [5, 4, 3]  # type: ignore[call-overload]


def test_every_format_gives_titles_years_and_genres(folder: Path) -> None:
    films = {str(event["film"]): event for event in events(read_movielens(folder)) if event["kind"] == "film"}
    assert films["3"]["title"] == "Léon: The Professional (1994)"
    assert films["3"]["year"] == 1994
    assert films["1"]["genres"] == ["Animation", "Children's"]


def test_a_zip_and_an_enclosing_folder_are_read_too(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    with zipfile.ZipFile(outside / "ml.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml-x/{file.name}")
    direct = events(read_movielens(folder))
    assert events(read_movielens(outside / "ml.zip")) == direct
    (outside / "in").mkdir()
    folder.rename(outside / "in" / "ml-x")
    assert events(read_movielens(outside / "in")) == direct


def test_users_and_tags_where_the_release_has_them(tmp_path: Path) -> None:
    people, films = tmp_path / "1m", tmp_path / "csv"
    for place, write in ((people, write_1m), (films, write_csv)):
        place.mkdir()
        write(place)
    users = [event for event in events(read_movielens(people)) if event["kind"] == "user"]
    assert [(event["user"], event["gender"], event["age"], event["occupation"]) for event in users] == [
        ("2", "M", 56, "self-employed"),
        ("1", "F", 1, "student-k12"),
    ]
    tags = [event["text"] for event in events(read_movielens(films)) if event["kind"] == "tag"]
    assert tags == ['so "good", really', "NA"]
    (tmp_path / "10m").mkdir()
    write_10m(tmp_path / "10m")
    assert [e["text"] for e in events(read_movielens(tmp_path / "10m")) if e["kind"] == "tag"] == ["so good:: really"]


def test_films_and_users_are_known_before_anybody_acts_on_them_and_not_before_their_year(tmp_path: Path) -> None:
    day_in_1994 = 24 * 365 * 86_400
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n1,Old (1960),A\n2,New (1996),B\n3,Early (1999),C\n4,No year,D\n"
    )
    ratings = [(1, 1, day_in_1994), (1, 3, day_in_1994 + 10), (1, 2, day_in_1994 + 5 * 365 * 86_400)]
    lines = "".join(f"{user},{film},4.0,{at}\n" for user, film, at in ratings)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + lines)
    found = events(read_movielens(tmp_path))
    times = {str(event["film"]): event["at"] for event in found if event["kind"] == "film"}
    assert times["1"] == day_in_1994 * 1000  # when the data begins
    assert times["2"] == 820_454_400_000  # 1996-01-01
    assert times["3"] == (day_in_1994 + 10) * 1000  # seen before its year: when it was first seen
    assert times["4"] == ratings[2][2] * 1000  # never seen, no year: when the data ends
    known: set[object] = set()
    for event in found:
        known |= {event["film"]} if event["kind"] == "film" else set()
        assert event["kind"] != "watch" or event["film"] in known


@pytest.mark.parametrize("rows", [1, 2, 7, 50, 10_000])
def test_the_tables_together_are_the_same_events_however_they_are_cut(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n" + "".join(f"{n},F ({1970 + n}),A\n" for n in range(60))
    )
    seconds = rng.integers(0, 40, 300) * 10_000_000
    lines = "".join(f"{n % 9},{n % 60},3.5,{at}\n" for n, at in enumerate(seconds))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + lines)
    tags = "".join(f"{n % 9},{n % 60},t{n},{at}\n" for n, at in enumerate(seconds[:80]))
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n" + tags)
    release = read_movielens(tmp_path)
    whole, cut = events(release), events(release, rows=rows)
    assert len(cut) == len(release) == 440
    assert sorted(map(str, cut)) == sorted(map(str, whole))
    times = [int(str(event["at"])) for event in cut]
    assert times == sorted(times)


def test_history_is_moved_by_whole_days_to_end_within_the_last_one(tmp_path: Path) -> None:
    write_csv(tmp_path)
    release = read_movielens(tmp_path)
    now = release.last + 1000 * DAY_MS + 7
    shift = shift_to(release.last, now)
    assert shift == 1000 * DAY_MS
    moved = events(release, shift)
    assert [int(str(e["at"])) - shift for e in moved] == [int(str(e["at"])) for e in events(release)]
    assert shift_to(now + 1, now) == 0


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: (root / "ratings.csv").unlink(), "no MovieLens release; expected ratings.csv"),
        (lambda root: (root / "ratings.csv").write_text("userId,movieId\n1,2\n"), "ratings.csv"),
        (
            lambda root: (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3\n"),
            "Expected 4 columns",
        ),
        (lambda root: (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\nx,2,3,4\n"), "ratings.csv"),
        (lambda root: (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n,2,3,4\n"), "lacks a value"),
        (lambda root: (root / "movies.csv").write_bytes(b"movieId,title,genres\n1,\xff\xfe,A\n"), "movies.csv"),
    ],
)
def test_what_is_no_release_is_refused_with_what_was_found(
    tmp_path: Path, break_it: Callable[[Path], object], said: str
) -> None:
    write_csv(tmp_path)
    break_it(tmp_path)
    with pytest.raises(MovieLensError, match=said) as caught:
        read_movielens(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(MovieLensError, match="no such folder"):
        read_movielens(tmp_path / "nothing")
    (tmp_path / "file.zip").write_text("no zip")
    with pytest.raises(MovieLensError, match="not a zip"):
        read_movielens(tmp_path / "file.zip")


def test_a_release_without_ratings_is_a_catalogue(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    (tmp_path / "tags.csv").unlink()
    assert {event["kind"] for event in events(read_movielens(tmp_path))} == {"film"}
