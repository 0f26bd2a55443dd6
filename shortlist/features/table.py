"""The feature table: the state of every key in memory, updated from the log and read by requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.batch import Batch
from shortlist.features import snapshot
from shortlist.features.columns import Columns
from shortlist.features.definitions import Aggregate
from shortlist.features.entities import Entities, Names
from shortlist.features.hashing import Hashes, Ids, hashes_of
from shortlist.features.intake import Asked, Intake
from shortlist.features.plan import Plan, planned
from shortlist.features.program import FeatureSet
from shortlist.features.request import fill_ratios, fill_requests
from shortlist.features.state import GroupState, Lists
from shortlist.framing.problems import nearest

SLICE = 4_096
"""Events that are folded before waiting reads get their turn."""


class FeatureTable:
    """What is known of every key as of `position`. Several threads may update and read at once."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.entities: Mapping[str, Entities] = {entity.name: Entities(entity) for entity in features.entities}
        self.position = 0
        self.states = [GroupState(group) for group in features.program.groups]
        self.words = {column: Names() for column in listed_columns(features)}
        self._plans: dict[tuple[Sequence[str] | None, tuple[str, ...]], Plan] = {}
        self._updating = Lock()  # held by whoever changes the state, or must see it unchanged for long; taken first
        self._lock = Lock()  # held by whoever changes the state or reads it

    @property
    def late(self) -> Mapping[str, int]:
        """For each windowed feature, how many events came too late for its ring and were left out."""
        return late_counts(self.features, self.states)

    def update(self, batch: Batch) -> None:
        """Fold a batch, in offset order. Events below `position` are skipped, so a batch may come twice."""
        for part in slices(batch, self.position):
            with self._updating, self._lock:
                if part.start < self.position:
                    part = part.slice(self.position, part.stop)  # another thread was faster
                    if not len(part):
                        continue
                intake = Intake(part)
                for entities in self.entities.values():
                    entities.update(part)
                for state in self.states:
                    state.fold(intake, self.entities)
                for column, names in self.words.items():
                    if column in part.schema.names:
                        names.learn(intake.hashes(column), part.strings(column))
                for entities in self.entities.values():
                    entities.forget_history()
                self.position = part.stop

    def read(
        self,
        ids: Mapping[str, Ids],
        now: int | NDArray[np.int64],
        context: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Columns:
        """Columns and lists as of `now` (ms UTC: one time, or one per row), knowing the log up to `position`.

        `ids` gives per entity one id for all rows or one per row, as strings or as their hashes. `columns` names
        columns and lists; by default all that these entities' ids are enough for. Raises KeyError for an unknown name
        and ValueError where ids are missing or of different lengths.
        """
        plan = self._plan(columns, tuple(ids))
        hashes = {name: hashes_of(given) for name, given in ids.items()}
        length = row_count(hashes)
        matrix = np.empty((plan.height, length))
        if length == 0:
            return Columns(plan.names, matrix[: len(plan.names)], _no_lists(plan), self.position)
        lists: Lists = {}
        asked = Asked(hashes, self.entities)
        with self._lock:
            position = self.position
            for group in plan.groups:
                lists.update(self.states[group.number].read(group, asked, now, length, matrix))
            for entity, attribute, row in plan.attributes:
                self.entities[entity].attributes[attribute].fill_newest(asked.rows(entity), matrix[row])
        fill_ratios(plan, matrix)
        fill_requests(plan, matrix, now, context or {})
        return Columns(plan.names, matrix[: len(plan.names)], lists, position)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """While nobody changes or reads it. A copy of the process that is made meanwhile has to call `forked`."""
        with self._updating, self._lock:
            yield

    def forked(self) -> None:
        """Be changed and read again, in a copy of the process that was made while the table was at rest."""
        self._updating, self._lock = Lock(), Lock()

    def text(self, name: str, hashes: NDArray[np.int64]) -> list[str | None]:
        """The strings behind the hashes of a list feature, None for 0."""
        feature = self.features.by_name.get(name)
        if not isinstance(feature, Aggregate) or feature.value is None:
            raise KeyError(f"no list feature {name!r}; {nearest(name, self.features.lists)}")
        column = feature.stream.event.column(feature.value)
        names = self.words[column] if column in self.words else self.entities[feature.value].names
        return names.text(np.ascontiguousarray(hashes).reshape(-1).view(np.uint64))

    def snapshot(self, path: Path | str) -> None:
        """Write everything to a file, atomically: aside, fsynced, renamed. Updates wait for the copy, reads do not."""
        with self._updating:
            content = snapshot.contents(self)
        snapshot.write(Path(path), content)

    def restore(self, path: Path | str) -> None:
        """Become what a snapshot holds. Raises SnapshotError, and changes nothing, when it cannot be used."""
        content = snapshot.load(Path(path), self.features.fingerprint)
        with self._updating, self._lock:
            snapshot.adopt(self, content)

    def _plan(self, columns: Sequence[str] | None, keys: tuple[str, ...]) -> Plan:
        name = (columns if columns is None else tuple(columns), keys)
        if name not in self._plans:
            self._plans[name] = planned(self.features, columns, keys)
        return self._plans[name]


def slices(batch: Batch, position: int, size: int = SLICE) -> Iterator[Batch]:
    """The events of a batch from `position` on, at most `size` at a time."""
    if len(batch) == 0 or batch.stop <= position:
        return
    if len(batch) <= size and batch.start >= position:
        yield batch
        return
    first = int(np.searchsorted(batch.offset, position))
    for start in range(first, len(batch), size):
        stop = min(start + size, len(batch)) - 1
        yield batch.slice(int(batch.offset[start]), int(batch.offset[stop]) + 1)


def row_count(hashes: Mapping[str, Hashes]) -> int:
    """The number of rows that ids describe; those of length 1 are for all rows. Raises ValueError on a mixture."""
    lengths = {len(given) for given in hashes.values()} - {1}
    if len(lengths) > 1:
        shown = ", ".join(f"{len(given)} of {name}" for name, given in hashes.items())
        raise ValueError(f"ids of different lengths: {shown}; give one id for all rows, or one per row")
    return lengths.pop() if lengths else 1


def late_counts(features: FeatureSet, states: Sequence[GroupState]) -> dict[str, int]:
    """Late events of each windowed aggregate among the features, by name."""
    windowed = [f for f in features.features if isinstance(f, Aggregate) and f.over is not None]
    outputs = {feature.name: features.program.output(feature) for feature in windowed}
    return {name: int(states[output.group].late[output.tileset]) for name, output in outputs.items()}


def listed_columns(features: FeatureSet) -> list[str]:
    """The log's columns whose strings appear in lists and are not ids of an entity."""
    listed = [features.by_name[name] for name in features.lists]
    columns = [
        feature.stream.event.column(feature.value)
        for feature in listed
        if isinstance(feature, Aggregate) and feature.value and not features.program.output(feature).numeric
    ]
    return [name for name in dict.fromkeys(columns) if all(entity.name != name for entity in features.entities)]


def _no_lists(plan: Plan) -> Lists:
    parts = [part for group in plan.groups for part in group.lists]
    kind = {True: np.float64, False: np.int64}
    return {part.name: np.empty((0, part.stop - part.start), kind[part.numeric]) for part in parts}
