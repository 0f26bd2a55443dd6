"""MovieLens releases as they lie on disk, read into the events of the films project.

Source: F. Maxwell Harper and Joseph A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015; files.grouplens.org. Three
families of formats, told apart by the files present: CSV with a header (latest-small, 20M, 25M, 32M), `::` (1M, 10M)
and tabs with `|` (100k). A rating says that a film was watched and how it was liked: it becomes `watch` with `stars`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

Folder = Path | zipfile.Path
DAY_MS = 86_400_000
YEAR = re.compile(r"\((\d{4})(?:[–-]\d{0,4})?\)\s*$")
RATING_TYPES = {"user": pa.int32(), "film": pa.int32(), "stars": pa.float32(), "seconds": pa.int64()}
OCCUPATIONS = [
    "other",
    "educator",
    "artist",
    "clerical",
    "student",
    "customer-service",
    "doctor",
    "executive",
    "farmer",
    "homemaker",
    "student-k12",
    "lawyer",
    "programmer",
    "retired",
    "marketing",
    "scientist",
    "self-employed",
    "engineer",
    "craftsman",
    "unemployed",
    "writer",
]
"""The occupation codes 0 to 20 of the 1M release."""


class MovieLensError(Exception):
    """A folder or zip that is no MovieLens release; the message says what was looked for and what was found."""


@dataclass(frozen=True)
class Actions:
    """Columns of what users did, in time order: MovieLens's numeric ids and `at` in ms UTC."""

    user: NDArray[np.int32]
    film: NDArray[np.int32]
    at: NDArray[np.int64]
    value: pa.Array

    def __len__(self) -> int:
        return len(self.at)

    def slice(self, start: int, stop: int) -> Actions:
        """The actions from `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return Actions(self.user[part], self.film[part], self.at[part], self.value.slice(start, stop - start))


@dataclass(frozen=True)
class MovieLens:
    """One release. `films` has the columns film, title, genres, year; `users` user, gender, age, occupation."""

    films: pa.Table
    users: pa.Table
    watches: Actions
    tags: Actions

    def __len__(self) -> int:
        return int(self.films.num_rows + self.users.num_rows) + len(self.watches) + len(self.tags)

    @cached_property
    def last(self) -> int:
        """When the last thing happened, ms UTC."""
        return max([int(actions.at[-1]) for actions in (self.watches, self.tags) if len(actions)], default=0)

    def events(self, shift_ms: int = 0, rows: int = 200_000) -> Iterator[pa.Table]:
        """The events in time order, in tables of about `rows` of them; every time is moved by `shift_ms`.

        A film is known from the first day of its year or of the data, whichever is later, and at the latest when it is
        first watched; a user from their first action.
        """
        described = [
            with_time(self.films, "film", self._film_times()),
            with_time(self.users, "user", self._first(self.users, "user")),
        ]
        done = [0, 0]
        tagged = 0
        for start in range(0, max(len(self.watches), 1), rows):
            stop = min(start + rows, len(self.watches))
            last = stop == len(self.watches)
            until = self.last if last else int(self.watches.at[stop - 1])
            parts: list[pa.Table] = []
            for number, table in enumerate(described):
                end = table.num_rows if last else int(np.searchsorted(table["at"].to_numpy(), until, "right"))
                parts.append(table.slice(done[number], end - done[number]))
                done[number] = end
            tag_end = int(np.searchsorted(self.tags.at, until, "right"))
            parts.append(as_events("watch", "stars", self.watches.slice(start, stop)))
            parts.append(as_events("tag", "text", self.tags.slice(tagged, tag_end)))
            tagged = tag_end
            yield in_time_order([part for part in parts if part.num_rows], shift_ms)

    def _first(self, table: pa.Table, key: str) -> NDArray[np.int64]:
        """When each row's entity first acted or was acted on; the last moment where it never was."""
        ids = pc.cast(table[key], pa.int64()).to_numpy()
        acted = [getattr(actions, key) for actions in (self.watches, self.tags)]
        size = max([0, *(int(values.max()) + 1 for values in [ids, *acted] if len(values))])
        first = np.full(size, self.last, np.int64)
        for values, actions in zip(acted, (self.watches, self.tags), strict=True):
            np.minimum.at(first, values, actions.at)
        known: NDArray[np.int64] = first[ids]
        return known

    def _film_times(self) -> NDArray[np.int64]:
        begin = min((int(actions.at[0]) for actions in (self.watches, self.tags) if len(actions)), default=0)
        years = pc.fill_null(self.films["year"], 9999).to_numpy()
        opened = (years - 1970).astype("datetime64[Y]").astype("datetime64[ms]").astype(np.int64)
        times: NDArray[np.int64] = np.minimum(np.maximum(opened, begin), self._first(self.films, "film"))
        return times


def read_movielens(path: str | Path) -> MovieLens:
    """The release in a folder or a zip. Raises MovieLensError, also for files that are damaged."""
    root = open_release(Path(path))
    names = {entry.name for entry in root.iterdir()}
    try:
        if {"ratings.csv", "movies.csv"} <= names:
            return read_csv(root, names)
        if {"ratings.dat", "movies.dat"} <= names:
            return read_dat(root, names)
        if {"u.data", "u.item"} <= names:
            return read_100k(root, names)
    except (pa.ArrowInvalid, pa.ArrowKeyError, ValueError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise MovieLensError(f"{path}: a damaged MovieLens release: {error}") from error
    found = ", ".join(sorted(names)[:8]) or "nothing"
    raise MovieLensError(
        f"{path}: no MovieLens release; expected ratings.csv and movies.csv (latest-small, 20M, 25M, 32M), ratings.dat "
        f"and movies.dat (1M, 10M), or u.data and u.item (100k); found {found}"
    )


def open_release(path: Path) -> Folder:
    """The folder that holds the files: the path itself, or the only folder within it."""
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise MovieLensError(f"{path}: not a zip; expected the folder or the zip of a MovieLens release")
        root: Folder = zipfile.Path(path)
    elif path.is_dir():
        root = path
    else:
        raise MovieLensError(f"{path}: no such folder; expected the folder or the zip of a MovieLens release")
    entries = [entry for entry in root.iterdir() if entry.name != "__MACOSX" and not entry.name.startswith(".")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else root


def read_csv(root: Folder, names: set[str]) -> MovieLens:
    """latest-small, latest, 20M, 25M, 32M: CSV with a header line."""
    watches = read_actions(root / "ratings.csv", ("userId", "movieId", "rating", "timestamp"))
    listed = read_text_columns(root / "movies.csv", ("movieId", "title", "genres"))
    films = film_table(listed[0], listed[1], [split_genres(text) for text in listed[2]])
    tags = (
        read_text_columns(root / "tags.csv", ("userId", "movieId", "tag", "timestamp")) if "tags.csv" in names else []
    )
    return MovieLens(films, user_table([], [], [], []), watches, tag_actions(tags))


def read_dat(root: Folder, names: set[str]) -> MovieLens:
    """1M (latin-1, with users) and 10M (UTF-8, with tags): fields between `::`, no header."""
    columns = ("user", "_1", "film", "_2", "stars", "_3", "seconds")  # `:` as the delimiter leaves empty columns
    parsing = pacsv.ParseOptions(delimiter=":", quote_char=False)
    watches = read_actions(root / "ratings.dat", columns[::2], pacsv.ReadOptions(column_names=list(columns)), parsing)
    listed = [split_ends(line, 3) for line in read_lines(root / "movies.dat")]
    films = film_table([f[0] for f in listed], [f[1] for f in listed], [split_genres(f[2]) for f in listed])
    tags = [split_ends(line, 4) for line in read_lines(root / "tags.dat")] if "tags.dat" in names else []
    people = [line.split("::") for line in read_lines(root / "users.dat")] if "users.dat" in names else []
    users = user_table(
        [p[0] for p in people],
        [p[1] for p in people],
        [int(p[2]) for p in people],
        [OCCUPATIONS[int(p[3])] for p in people],
    )
    return MovieLens(films, users, watches, tag_actions(list(zip(*tags, strict=True))))


def read_100k(root: Folder, names: set[str]) -> MovieLens:
    """100k: ratings between tabs; films, genres and users between `|`; latin-1."""
    watches = read_actions(
        root / "u.data",
        ("user", "film", "stars", "seconds"),
        pacsv.ReadOptions(column_names=["user", "film", "stars", "seconds"]),
        pacsv.ParseOptions(delimiter="\t", quote_char=False),
    )
    genres = [line.split("|")[0] for line in read_lines(root / "u.genre")] if "u.genre" in names else GENRES_100K
    listed = [line.split("|") for line in read_lines(root / "u.item")]
    marked = [[name for name, flag in zip(genres, f[5:], strict=False) if flag == "1"] for f in listed]
    films = film_table([f[0] for f in listed], [f[1] for f in listed], marked)
    people = [line.split("|") for line in read_lines(root / "u.user")] if "u.user" in names else []
    users = user_table(
        [p[0] for p in people], [p[2] for p in people], [int(p[1]) for p in people], [p[3] for p in people]
    )
    return MovieLens(films, users, watches, tag_actions([]))


GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def read_actions(
    file: Folder,
    columns: Sequence[str],
    reading: pacsv.ReadOptions | None = None,
    parsing: pacsv.ParseOptions | None = None,
) -> Actions:
    """Ratings as compact columns: `columns` are the file's names of user, film, stars and seconds."""
    types = dict(zip(columns, RATING_TYPES.values(), strict=True))
    converting = pacsv.ConvertOptions(column_types=types, include_columns=list(columns))
    with file.open("rb") as opened:
        try:
            table = pacsv.read_csv(opened, reading, parsing, converting)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(f"{file.name}: {error}") from error
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{file.name}: a line lacks a value; expected {', '.join(columns)}")
    user, film, stars, seconds = (table[name].to_numpy() for name in columns)
    order = np.argsort(seconds, kind="stable")
    return Actions(user[order], film[order], seconds[order] * 1000, pa.array(stars[order].astype(np.float64)))


def tag_actions(columns: Sequence[Sequence[str]]) -> Actions:
    """Tags from the columns user, film, text and seconds. A tag of nothing but spaces is none."""
    rows = [row for row in zip(*columns, strict=True) if row[2].strip()]
    at = np.array([int(row[3]) * 1000 for row in rows], np.int64)
    order = np.argsort(at, kind="stable")
    user, film = (np.array([int(row[place]) for row in rows], np.int32)[order] for place in (0, 1))
    return Actions(user, film, at[order], pa.array([rows[place][2] for place in order], pa.string()))


def read_text_columns(file: Folder, columns: Sequence[str]) -> list[list[str]]:
    """Columns of a CSV with a header, as text."""
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
    )
    with file.open("rb") as opened:
        try:
            table = pacsv.read_csv(opened, None, pacsv.ParseOptions(newlines_in_values=True), converting)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(f"{file.name}: {error}") from error
    return [table[name].to_pylist() for name in columns]


def read_lines(file: Folder) -> list[str]:
    """The lines of a text file that is UTF-8 or else latin-1, without empty ones."""
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]


def split_ends(line: str, fields: int) -> list[str]:
    """The fields of a `::` line whose next to last field is free text, which may hold `::` itself."""
    *head, rest = line.split("::", fields - 2)
    parts = [*head, *rest.rsplit("::", 1)]
    if len(parts) != fields:
        raise ValueError(f"expected {fields} fields between `::` in {line!r}")
    return parts


def split_genres(text: str) -> list[str]:
    """`"Comedy|Drama"` as a list; "(no genres listed)" is none."""
    return [genre for genre in text.split("|") if genre and genre != "(no genres listed)"]


def film_table(ids: Sequence[str], titles: Sequence[str], genres: Sequence[list[str]]) -> pa.Table:
    """The catalogue; the year is the one that ends the title."""
    years = [int(match[1]) if (match := YEAR.search(title)) else None for title in titles]
    return pa.table(
        {
            "film": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "year": pa.array(years, pa.int64()),
        }
    )


def user_table(ids: Sequence[str], gender: Sequence[str], age: Sequence[int], occupation: Sequence[str]) -> pa.Table:
    """What is known of users: something in the 100k and 1M releases, nothing in the others."""
    return pa.table(
        {
            "user": pa.array(ids, pa.string()),
            "gender": pa.array(gender, pa.string()),
            "age": pa.array(age, pa.int64()),
            "occupation": pa.array(occupation, pa.string()),
        }
    )


def with_time(table: pa.Table, kind: str, at: NDArray[np.int64]) -> pa.Table:
    """Rows of attributes as events of the entity, in time order."""
    order = np.argsort(at, kind="stable")
    return (
        table.take(pa.array(order)).append_column("at", pa.array(at[order])).append_column("kind", kinds(kind, len(at)))
    )


def as_events(kind: str, field: str, actions: Actions) -> pa.Table:
    """Actions as events of one kind."""
    columns: dict[str, Any] = {
        "user": pc.cast(pa.array(actions.user), pa.string()),
        "film": pc.cast(pa.array(actions.film), pa.string()),
        field: actions.value,
        "at": pa.array(actions.at),
        "kind": kinds(kind, len(actions)),
    }
    return pa.table(columns)


def kinds(kind: str, count: int) -> pa.Array:
    """The column `kind` of events of one kind."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int16)), pa.array([kind]))


def in_time_order(parts: Sequence[pa.Table], shift_ms: int) -> pa.Table:
    """One table, sorted by time; at the same moment what describes comes before what is done."""
    if not parts:
        return pa.table({"kind": pa.array([], pa.string()), "at": pa.array([], pa.int64())})
    table = pa.concat_tables(parts, promote_options="permissive").unify_dictionaries().combine_chunks()
    at = table["at"].to_numpy()
    table = table.set_column(table.column_names.index("at"), "at", pa.array(at + shift_ms))
    return table.take(pa.array(np.argsort(at, kind="stable")))


def shift_to(last: int, now: int) -> int:
    """How far to move history so that its last moment lies within the day before `now`: whole days, in ms."""
    return max(0, (now - last) // DAY_MS * DAY_MS)


def date(at: int) -> str:
    """A moment in ms UTC as a day."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d")
