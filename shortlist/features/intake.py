"""From a batch of the log to the records that a group of state folds: which events, which keys, which values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shortlist.events.batch import Batch
from shortlist.features.definitions import Condition, Stream
from shortlist.features.descriptors import AT, OFFSET, VALUES
from shortlist.features.entities import Entities
from shortlist.features.hashing import EVERYTHING, Hashes, combined, hash_strings
from shortlist.features.program import Group
from shortlist.features.windows import attribute_of, type_of

T = TypeVar("T", bound=np.generic)

COMPARE: Mapping[str, Callable[[NDArray[np.float64], float], NDArray[np.bool_]]] = {
    "==": np.equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
COMPARE_STRINGS = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


class Intake:
    """One batch, its columns decoded at most once however many groups read them."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._hashes: dict[str, Hashes] = {}
        self._words: dict[str, NDArray[np.int64]] = {}
        self._streams: dict[Stream, NDArray[np.bool_]] = {}

    def hashes(self, column: str) -> Hashes:
        """The hash of each string of a column, 0 for null."""
        if column not in self._hashes:
            self._hashes[column] = hash_strings(self.batch.strings(column))
        return self._hashes[column]

    def words(self, column: str, numeric: bool) -> NDArray[np.int64]:
        """A column as 64-bit words: the bits of a float64 (NaN for null), or a hash (0 for null)."""
        if column not in self._words:
            numbers = self.batch.numbers(column) if numeric else self.hashes(column)
            self._words[column] = numbers.view(np.int64)
        return self._words[column]

    def stream(self, stream: Stream) -> NDArray[np.bool_]:
        """Which events are of a stream: of its kind, and every condition true."""
        if stream not in self._streams:
            mask = self.batch.of_kind(stream.event.kind)
            if mask.any():
                for condition in stream.conditions:
                    mask = mask & self._holds(stream, condition)
            self._streams[stream] = mask
        return self._streams[stream]

    def _holds(self, stream: Stream, condition: Condition) -> NDArray[np.bool_]:
        column = stream.event.column(condition.field)
        if type_of(stream.event, condition.field) != "str":
            numbers = self.batch.numbers(column)
            if condition.comparison == "in":
                return np.isin(numbers, [float(value) for value in condition.value])
            if condition.comparison == "!=":
                return np.asarray((numbers != float(condition.value)) & ~np.isnan(numbers))
            return COMPARE[condition.comparison](numbers, float(condition.value))
        strings = self.batch.strings(column)
        if condition.comparison == "in":
            held = pc.is_in(strings, value_set=pa.array(condition.value, pa.string()))
        else:
            held = COMPARE_STRINGS[condition.comparison](strings, condition.value)
        mask: NDArray[np.bool_] = held.fill_null(False).to_numpy(zero_copy_only=False)
        return mask


@dataclass(frozen=True)
class Selection:
    """The records of one batch for one group: event `events[i]` (None: event i) updates the row of `keys[i]`."""

    keys: Hashes
    events: NDArray[np.intp] | None


def select(group: Group, intake: Intake, entities: Mapping[str, Entities]) -> Selection:
    """Which events of a batch update which keys of a group, in log order. Attributes are as of each event's offset."""
    streams = [intake.stream(stream) for stream in group.streams]
    chosen = streams[0] if len(streams) == 1 else np.logical_or.reduce(streams)
    events = None if chosen.all() else np.flatnonzero(chosen)
    if events is not None and not len(events):
        return Selection(np.empty(0, np.uint64), events)
    if not group.keys:
        return Selection(np.full(len(chosen) if events is None else len(events), EVERYTHING), events)
    parts = {name: _taken(intake.hashes(name), events) for name in group.entities}
    offsets = _taken(intake.batch.offset, events)
    keys, owners = key_hashes(group, Asked(parts, entities), len(offsets), offsets)
    if owners is not None:
        events = owners if events is None else events[owners]
    return Selection(keys, events)


def columns_of(group: Group, intake: Intake, selection: Selection) -> NDArray[np.int64]:
    """The selected records as columns: offset, at, values, and the mask of streams; shape (group.width, records)."""
    events = selection.events
    block = np.empty((group.width, len(selection.keys)), np.int64)
    block[OFFSET] = _taken(intake.batch.offset, events)
    block[AT] = _taken(intake.batch.at, events)
    by_kind = {stream.event.kind: stream.event for stream in group.streams}
    last = group.mask_at or group.width
    for slot in range(VALUES, last):
        holders = [kind for kind, names in group.values.items() if slot - VALUES < len(names)]
        for number, kind in enumerate(holders):
            field, numeric = group.values[kind][slot - VALUES]
            words = _taken(intake.words(by_kind[kind].column(field), numeric), events)
            mine = True if number == 0 else _taken(intake.batch.of_kind(kind), events)
            np.copyto(block[slot], words, where=mine)
    if group.mask_at:
        block[group.mask_at] = 0
        for bit, stream in enumerate(group.streams):
            block[group.mask_at] |= _taken(intake.stream(stream), events).astype(np.int64) << bit
    return block


@dataclass(frozen=True)
class Asked:
    """Hashes of ids by entity, one per owner or one for all, and their rows among the entities, looked up once."""

    hashes: Mapping[str, Hashes]
    entities: Mapping[str, Entities]
    _rows: dict[str, NDArray[np.int32]] = field(default_factory=dict)

    def rows(self, entity: str) -> NDArray[np.int32]:
        """The row of each id of an entity, 0 where it is unknown."""
        if entity not in self._rows:
            self._rows[entity] = self.entities[entity].rows(self.hashes[entity])
        return self._rows[entity]


def key_hashes(
    group: Group, asked: Asked, length: int, positions: NDArray[np.int64] | None
) -> tuple[Hashes, NDArray[np.intp] | None]:
    """The keys of a group for `length` owners, and whose each key is (None: one each, in order).

    An attribute's values are those known at each owner's position, or now (None); an owner without any has no key.
    """
    if not group.keys:
        return np.full(1, EVERYTHING), None
    keys: Hashes | None = None
    owners: NDArray[np.intp] | None = None
    for part in group.keys:
        pair = attribute_of(part)
        own = asked.hashes[pair[0] if pair else part]
        if pair:
            rows = np.broadcast_to(asked.rows(pair[0]), length)
            rows = rows if owners is None else rows[owners]
            attribute = asked.entities[pair[0]].attributes[pair[1]]
            if positions is None:
                versions = attribute.newest(rows)
            else:
                at = positions if owners is None else positions[owners]
                versions = attribute.versions(np.ascontiguousarray(rows), at)
            counts, values = attribute.words_of(versions)
            spread = np.repeat(np.arange(len(counts)), counts)
            owners = spread if owners is None else owners[spread]
            keys = keys if keys is None or len(keys) == 1 else keys[spread]
            own = values
        elif owners is not None and len(own) > 1:
            own = own[owners]
        keys = own if keys is None else combined(keys, own)
    assert keys is not None
    return keys, owners


def _taken(column: NDArray[T], events: NDArray[np.intp] | None) -> NDArray[T]:
    return column if events is None else column[events]
