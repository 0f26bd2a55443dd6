"""Replay: the log again, for rows that each know it up to a position of their own.

Every training row is read off the same state by the same compiled function as a live request. What is particular to
replay is only the order of work: events and reads are sorted by key (a stable counting sort, so that the log's order
stays within a key), and one row of state at a time is folded while it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import EventLog
from shortlist.features.columns import Columns, Rows
from shortlist.features.descriptors import READ_FIELDS
from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes, hashes_of
from shortlist.features.index import average, scatter, tally
from shortlist.features.intake import Asked, Intake, columns_of, key_hashes, select
from shortlist.features.kernels import walk
from shortlist.features.plan import GroupPlan, Plan, planned
from shortlist.features.program import FeatureSet
from shortlist.features.request import fill_ratios, fill_requests
from shortlist.features.state import GroupState, Lists, named_lists
from shortlist.features.table import late_counts, slices
from shortlist.features.windows import entity_of

CHUNK = 1 << 24
"""Events that are sorted at a time: 16 million take about 1 GB."""

PART = 1 << 16
"""Events whose columns are decoded at a time: they fit into the processor's cache."""


@dataclass(frozen=True)
class Chunk:
    """A stretch of the log, decoded, with the attributes as of its end; and which rows are read within it."""

    intakes: list[Intake]
    rows: NDArray[np.intp]
    whole: bool


def replay(log: EventLog, features: FeatureSet, rows: Rows, columns: Sequence[str] | None = None) -> Columns:
    """The columns and lists of every row, in the rows' order, each knowing exactly the events before its position.

    Just those of the names `columns`, or all that the ids of `rows` are enough for; equal to the last bit to what a
    FeatureTable at that position reads. Memory: one chunk of the log, and the result. Raises ValueError where ids are
    missing, or ids, positions and times do not fit; KeyError for an unknown name.
    """
    hashes = {name: hashes_of(ids) for name, ids in rows.ids.items()}
    position, now = np.asarray(rows.position, np.int64), np.asarray(rows.now, np.int64)
    check_rows(log, hashes, position, now)
    plan = planned(features, columns, tuple(hashes))
    return _Replay(features, plan, hashes, position, now).run(log, rows)


def check_rows(
    log: EventLog, hashes: Mapping[str, Hashes], position: NDArray[np.int64], now: NDArray[np.int64]
) -> None:
    """Raise ValueError where ids, positions and times are not one per row, or a position lies past the log's end."""
    for name, given in [*hashes.items(), ("now", now)]:
        if len(given) != len(position) and not (len(given) == 1 and name != "now"):
            raise ValueError(f"{len(given)} values of {name} for {len(position)} rows")
    if len(position) and (position.max() > log.position or position.min() < 0):
        raise ValueError(
            f"rows ask for log positions {position.min()} to {position.max()}; the log ends at {log.position}"
        )


class _Replay:
    """One replay: the states of the groups that the plan reads, and the result as it fills."""

    def __init__(
        self,
        features: FeatureSet,
        plan: Plan,
        hashes: Mapping[str, Hashes],
        position: NDArray[np.int64],
        now: NDArray[np.int64],
    ) -> None:
        self.features, self.plan = features, plan
        self.position, self.now, self.length = position, now, len(position)
        self.hashes = {
            name: np.ascontiguousarray(np.broadcast_to(given, self.length)) for name, given in hashes.items()
        }
        wanted = {entity_of(part) for g in plan.groups for part in g.group.keys if "." in part}
        wanted |= {entity for entity, _, _ in plan.attributes}
        self.entities = {e.name: Entities(e) for e in features.entities if e.name in wanted}
        self.states = [GroupState(group) for group in features.program.groups]
        self.by_row = np.empty((self.length, plan.height))
        self.lists: Lists = {}

    def run(self, log: EventLog, rows: Rows) -> Columns:
        """Walk the log chunk by chunk, then compute what is made of columns."""
        for chunk in self._chunks(log):
            for group in self.plan.groups:
                self._group(group, chunk)
            for entity, attribute, row in self.plan.attributes:
                known = self.entities[entity]
                owners = known.rows(self.hashes[entity][chunk.rows])
                column = known.attributes[attribute]
                self.by_row[chunk.rows, row] = column.numbers_of(column.versions(owners, self.position[chunk.rows]))
        matrix = np.ascontiguousarray(self.by_row.T)
        fill_ratios(self.plan, matrix)
        fill_requests(self.plan, matrix, self.now, rows.context)
        names = self.plan.names
        known_to = int(self.position.max()) if self.length else 0
        read = {group.number for group in self.plan.groups}
        late = {
            name: count
            for name, count in late_counts(self.features, self.states).items()
            if self.features.program.output(self.features.by_name[name]).group in read  # type: ignore[arg-type]
        }
        return Columns(names, matrix[: len(names)], self.lists, known_to, late)

    def _chunks(self, log: EventLog) -> Iterator[Chunk]:
        stop = int(self.position.max()) if self.length else 0
        held: list[Intake] = []
        first, count, start = True, 0, -1
        for batch in log.scan(0, stop, self._log_columns(log)):
            for part in slices(batch, 0, PART):
                if count >= CHUNK:
                    yield self._chunk(held, start, held[-1].batch.stop, False)
                    start, held, first, count = held[-1].batch.stop, [], False, 0
                for entities in self.entities.values():
                    entities.update(part)
                held.append(Intake(part))
                count += len(part)
        yield self._chunk(held, start, stop, first)

    def _log_columns(self, log: EventLog) -> list[str]:
        """The columns of the log that the plan reads: keys, values, conditions, and attributes."""
        wanted: dict[str, None] = {}
        for group in (plan.group for plan in self.plan.groups):
            wanted |= dict.fromkeys(group.entities)
            for stream in group.streams:
                fields = [name for name, _ in group.values.get(stream.event.kind, ())]
                fields += [condition.field for condition in stream.conditions]
                wanted |= dict.fromkeys(stream.event.column(field) for field in fields)
        for name, known in self.entities.items():
            told = [name, *(f"{name}.{attribute}" for attribute in known.attributes)]
            wanted |= dict.fromkeys(column for column in told if column in log.door.columns.names)
        return list(wanted)

    def _chunk(self, held: list[Intake], start: int, stop: int, whole: bool) -> Chunk:
        return Chunk(held, np.flatnonzero((self.position > start) & (self.position <= stop)), whole)

    def _group(self, plan: GroupPlan, chunk: Chunk) -> None:
        """Sort the chunk's events and reads of one group by key, and walk them."""
        state = self.states[plan.number]
        event_rows, records = self._sorted_events(state, chunk)
        positions = self.position[chunk.rows]
        hashes = {name: given[chunk.rows] for name, given in self.hashes.items()}
        keys, owners = key_hashes(state.group, Asked(hashes, self.entities), len(positions), positions)
        if not state.group.keys:
            keys = np.repeat(keys, len(positions))
        asked = positions if owners is None else positions[owners]
        now = self.now[chunk.rows] if owners is None else self.now[chunk.rows][owners]
        to = np.arange(len(asked)) if owners is not None else chunk.rows
        read_rows, reads = _sorted_reads(state, keys, np.stack([asked, now, to]))
        block = np.empty((len(asked) if owners is not None else self.length, plan.list_words), np.int64)
        out = self.by_row.T if owners is None else np.empty((len(plan.targets), len(asked)))
        rows = state.rows if not chunk.whole else np.tile(state.group.template, (2, 1))
        walk(
            state.group.tilesets, state.group.lanes, plan.outputs, rows.reshape(-1), state.words, not chunk.whole,
            event_rows, records, state.group.mask_at, read_rows, reads, 1, out, block, state.late,
            np.empty(plan.widest, np.uint8),
        )  # fmt: skip
        if owners is not None:
            filled = np.empty((len(plan.targets), len(positions)))
            starts = np.searchsorted(owners, np.arange(len(positions) + 1))
            average(out, starts, np.arange(len(plan.targets)), filled)
            self.by_row[np.ix_(chunk.rows, plan.targets)] = filled.T
        whole = owners is not None or len(chunk.rows) == self.length
        self._keep_lists(plan, chunk, block if whole else block[chunk.rows], owners)

    def _keep_lists(
        self, plan: GroupPlan, chunk: Chunk, block: NDArray[np.int64], owners: NDArray[np.intp] | None
    ) -> None:
        for name, values in named_lists(plan, block, owners, len(chunk.rows)).items():
            if len(chunk.rows) == self.length:
                self.lists[name] = values
                continue
            if name not in self.lists:
                self.lists[name] = np.empty((self.length, values.shape[1]), values.dtype)
            self.lists[name][chunk.rows] = values

    def _sorted_events(self, state: GroupState, chunk: Chunk) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The chunk's records of one group, by row and within it in log order."""
        selections = [select(state.group, intake, self.entities) for intake in chunk.intakes]
        if chunk.whole:
            found = [state.index.insert(selection.keys)[0] for selection in selections]
        else:
            found = [state.insert(selection.keys) for selection in selections]
        counts = np.zeros(state.index.rows + 1, np.int64)
        for rows in found:
            tally(rows, counts)
        cursor = np.cumsum(counts) - counts
        total = int(counts.sum())
        sorted_rows, records = np.empty(total, np.int32), np.empty((total, state.group.width), np.int64)
        for intake, selection, rows in zip(chunk.intakes, selections, found, strict=True):
            if len(rows):
                scatter(rows, columns_of(state.group, intake, selection), cursor, sorted_rows, records)
        return sorted_rows, records


def _sorted_reads(
    state: GroupState, keys: Hashes, reads: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Reads (columns: position, now, to) by row of state and within it by position."""
    if np.any(np.diff(reads[0]) < 0):
        order = np.argsort(reads[0], kind="stable")
        keys, reads = keys[order], np.ascontiguousarray(reads[:, order])
    rows = state.index.find(np.ascontiguousarray(keys))
    counts = np.zeros(state.index.rows + 1, np.int64)
    tally(rows, counts)
    sorted_rows, records = np.empty(len(rows), np.int32), np.empty((len(rows), READ_FIELDS), np.int64)
    scatter(rows, reads, np.cumsum(counts) - counts, sorted_rows, records)
    return sorted_rows, records
