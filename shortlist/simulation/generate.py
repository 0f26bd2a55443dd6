"""Writes the history of a world to a log, or to Parquet files for import elsewhere."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shortlist.events.log import EventLog, Progress
from shortlist.simulation.behaviour import Integers
from shortlist.simulation.history import IMPRESSION, ITEM, KINDS, USER, WATCH, History, Rows
from shortlist.simulation.population import ADJECTIVES, COUNTRIES, DEVICES, NOUNS
from shortlist.simulation.world import World

CHUNK = 250_000
SOURCE = "simulation"
"""The name under which a log remembers how much of the history it has."""

Write = Callable[["Tables", Rows, int], None]
"""Stores rows as a table; the number is the place of the first of them in the history."""


def generate(
    world: World,
    into: EventLog | Path,
    events: int,
    seed: int = 0,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Write about `events` events of the world's history, in the order of time, `chunk` at a time.

    `into` is a log, which takes them as imported history (learned when it happened; interrupted, the next call goes
    on), or a directory that gets Parquet files `part-*.parquet`, each named by its first event. The count includes the
    announcements of items and users and is met within a few per cent; the same world and seed make the same events
    whatever the chunk. `progress` is called with the events written so far and those expected.

    Raises ValueError where `events` is too few to announce the items, and where the log refuses an event (its project
    is not that of `simulation/project.py`) or holds another world's history. Raises LogError.
    """
    history = History(world, events, seed)
    write = _files(into) if isinstance(into, Path) else _append_to(into, _digest(world, events, seed))
    table = Tables(world)
    written = 0
    for rows in _cut(history.blocks(), chunk):
        write(table, rows, written)
        written += len(rows)
        if progress is not None:
            progress(written, max(events, written))
    return history


def save(path: Path, history: History) -> None:
    """Keep what makes the world again, and what its users have seen: an npz file without code, for `load`."""
    with path.open("wb") as file:
        np.savez_compressed(file, parameters=np.array(json.dumps(dict(history.world.parameters))), seen=history.seen)


def load(path: Path) -> tuple[World, NDArray[np.int64]]:
    """The world and the keys `user * all items + item` of what its users have opened, as kept by `save`.

    Raises ValueError where the file is none of `save`'s, OSError where it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            return World(**json.loads(str(kept["parameters"]))), kept["seen"]
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold a simulated world ({error}); write one anew with --write") from error


def _cut(blocks: Iterator[Rows], size: int) -> Iterator[Rows]:
    """The same rows in pieces of exactly `size`, the last one smaller."""
    waiting: list[Rows] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= size:
            rows = np.concatenate(waiting)
            whole = count - count % size
            for first in range(0, whole, size):
                yield rows[first : first + size]
            waiting, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _digest(world: World, events: int, seed: int) -> str:
    """Names one history: the same parameters make the same events."""
    named = json.dumps([dict(world.parameters), events, seed], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def _append_to(log: EventLog, digest: str) -> Write:
    """Appends as history that was learned when it happened, and goes on where it was interrupted."""
    before = log.progress(SOURCE)
    if before is not None and before.digest != digest:
        raise ValueError("the log holds the history of another simulated world; generate into a new log")
    done = before.rows if before is not None else 0

    def write(table: Tables, rows: Rows, first: int) -> None:
        stop = first + len(rows)
        if stop <= done:
            return
        receipt = log.append_imported(table.of(rows[max(0, done - first) :]), Progress(SOURCE, digest, stop))
        if receipt.refusals:
            raise ValueError(
                f"the log refused {len(receipt.refusals):,} simulated events, the first one at {receipt.refusals[0]}; "
                "the log must be that of the project in shortlist/simulation/project.py"
            )

    return write


def _files(directory: Path) -> Write:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("part-*.parquet")):
        raise ValueError(f"{directory} already holds part-*.parquet files; name an empty directory")

    def write(table: Tables, rows: Rows, first: int) -> None:
        pq.write_table(table.of(rows), directory / f"part-{first:012d}.parquet", compression="zstd")

    return write


class Tables:
    """Turns rows of numbers into Arrow tables that a log takes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.category_names = pa.array(world.categories)
        self.tag_names = pa.array(world.tags)

    def of(self, rows: Rows) -> pa.Table:
        """The events as a table with the columns `kind` and `at`, the keys, and the fields of every kind."""
        kind = pa.DictionaryArray.from_arrays(pa.array(rows["kind"].astype(np.int16)), pa.array(KINDS))
        impression, watch = rows["kind"] != IMPRESSION, rows["kind"] != WATCH
        columns = {
            "kind": kind,
            "at": pa.array(rows["at"]),
            "user": _ids("u", rows["user"]),
            "item": _ids("i", rows["item"]),
            "request": _ids("r", rows["request"]),
            "position": pa.array(rows["position"].astype(np.int64), mask=impression),
            "propensity": pa.array(rows["propensity"], mask=impression),
            "seconds": pa.array(rows["seconds"].astype(np.float64).round(1), mask=watch),
        }
        columns |= self._of_users(rows) if (rows["kind"] == USER).any() else {}
        columns |= self._of_items(rows) if (rows["kind"] == ITEM).any() else {}
        return pa.table(columns)

    def _of_users(self, rows: Rows) -> dict[str, pa.Array]:
        users = self.world.users
        others = rows["kind"] != USER
        number = np.where(others, 0, rows["user"])
        return {
            "age": pa.array(users.age[number], mask=others),
            "device": _named(DEVICES, users.device[number], others),
            "country": _named(COUNTRIES, users.country[number], others),
        }

    def _of_items(self, rows: Rows) -> dict[str, pa.Array]:
        items = self.world.items
        others = rows["kind"] != ITEM
        number = np.where(others, 0, rows["item"])
        return {
            "category": self.category_names.take(pa.array(items.category[number], mask=others)),
            "creator": _ids("c", np.where(others, -1, items.creator[number])),
            "tags": self._tags(rows, others),
            "title": _titles(np.where(others, -1, number)),
            "published": pa.array(items.born[number], mask=others),
        }

    def _tags(self, rows: Rows, others: NDArray[np.bool_]) -> pa.Array:
        """Each item's distinct tags in the order of their numbers."""
        tags = np.sort(self.world.items.tags[rows["item"][~others]], axis=1)
        first = np.concatenate([np.ones((len(tags), 1), np.bool_), tags[:, 1:] != tags[:, :-1]], axis=1)
        sizes = np.zeros(len(rows), np.int32)
        sizes[~others] = first.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets), self.tag_names.take(pa.array(tags[first])), mask=pa.array(others)
        )


def _ids(letter: str, numbers: Integers) -> pa.Array:
    """`letter` and the number; null for -1."""
    text = pc.cast(pa.array(numbers, mask=numbers < 0), pa.string())
    return pc.binary_join_element_wise(pa.scalar(letter), text, "")


def _named(names: tuple[str, ...], codes: Integers, absent: NDArray[np.bool_]) -> pa.Array:
    return pa.array(names).take(pa.array(codes, mask=absent))


def _titles(numbers: Integers) -> pa.Array:
    """The titles of `World.title`; null for -1."""
    absent = numbers < 0
    number = np.maximum(numbers, 0)
    adjective = _named(ADJECTIVES, number % len(ADJECTIVES), absent)
    noun = _named(NOUNS, number // 11 % len(NOUNS), absent)
    part = pc.cast(pa.array(number // 110 + 1, mask=absent), pa.string())
    return pc.binary_join_element_wise(adjective, noun, part, " ")
