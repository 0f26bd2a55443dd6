"""The rows of state of one group: one table, found by key, grown as keys appear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes
from shortlist.features.index import KeyIndex, average
from shortlist.features.intake import Asked, Intake, columns_of, key_hashes, select
from shortlist.features.kernels import answer, walk
from shortlist.features.plan import GroupPlan
from shortlist.features.program import Group

Lists = dict[str, NDArray[Any]]

NO_ROWS: NDArray[np.int32] = np.empty(0, np.int32)
NO_RECORDS: NDArray[np.int64] = np.empty((0, 3), np.int64)
NO_OUTPUTS: NDArray[np.int64] = np.empty((0, 9), np.int64)
NO_VALUES: NDArray[np.float64] = np.empty((0, 0), np.float64)
NO_LISTS: NDArray[np.int64] = np.empty((0, 0), np.int64)
NO_REGISTERS: NDArray[np.uint8] = np.empty(0, np.uint8)


class GroupState:
    """State of one group: `rows[i]` is the row of the i-th key, row 0 the template."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.index = KeyIndex()
        self.words = len(group.template)
        self.rows: NDArray[np.int64] = np.tile(group.template, (2, 1))
        self.late: NDArray[np.int64] = np.zeros(len(group.tilesets), np.int64)

    def insert(self, keys: Hashes) -> NDArray[np.int32]:
        """The row of each key; unseen ones get a fresh row."""
        before = self.index.rows + 1
        found, _ = self.index.insert(keys)
        after = self.index.rows + 1
        if after > len(self.rows):
            grown = np.empty((max(after, 2 * len(self.rows)), self.words), np.int64)
            grown[:before] = self.rows[:before]
            self.rows = grown
        if after > before:
            self.rows[before:after] = self.group.template
        return found

    def fold(self, intake: Intake, entities: Mapping[str, Entities]) -> None:
        """Update the rows with a batch, in log order."""
        selection = select(self.group, intake, entities)
        if not len(selection.keys):
            return
        rows = self.insert(selection.keys)
        records = np.ascontiguousarray(columns_of(self.group, intake, selection).T)
        walk(
            self.group.tilesets, self.group.lanes, NO_OUTPUTS, self.rows.reshape(-1), self.words, True, rows, records,
            self.group.mask_at, NO_ROWS, NO_RECORDS, 1, NO_VALUES, NO_LISTS, self.late, NO_REGISTERS,
        )  # fmt: skip

    def read(
        self,
        plan: GroupPlan,
        asked: Asked,
        now: int | NDArray[np.int64],
        length: int,
        matrix: NDArray[np.float64],
    ) -> Lists:
        """Fill the group's rows of the matrix, and return its lists, as of `now` with everything known."""
        keys, owners = key_hashes(self.group, asked, length, None)
        moments = now if isinstance(now, np.ndarray) else np.array([now], np.int64)
        if len(moments) > 1:
            if owners is not None:
                moments = moments[owners]
            elif len(keys) < length:
                keys = np.repeat(keys, length)
        copies = length if len(keys) < length and owners is None else 1
        out = matrix if owners is None else np.empty((len(plan.targets), len(keys)))
        lists = np.empty((len(keys), plan.list_words), np.int64)
        answer(
            keys, self.index.slots, moments, self.group.tilesets, plan.outputs, self.rows.reshape(-1), self.words,
            copies, out, lists, np.empty(plan.widest, np.uint8),
        )  # fmt: skip
        if owners is not None:
            average(out, np.searchsorted(owners, np.arange(length + 1)), plan.targets, matrix)
        return named_lists(plan, lists, owners, length)


def named_lists(plan: GroupPlan, block: NDArray[np.int64], owners: NDArray[np.intp] | None, length: int) -> Lists:
    """Cut a group's block of lists, shape (reads, words), into the lists of `length` rows, by name."""
    if not plan.lists:
        return {}
    if owners is not None:
        first = np.searchsorted(owners, np.arange(length))
        held = np.searchsorted(owners, np.arange(length), side="right") > first
        chosen = np.empty((length, plan.list_words), np.int64)
        chosen[held] = block[first[held]]
        for part in plan.lists:
            chosen[~held, part.start : part.stop] = np.array([np.nan]).view(np.int64) if part.numeric else 0
        block = chosen
    lists: Lists = {}
    for part in plan.lists:
        values = block[:, part.start : part.stop]
        typed = values.view(np.float64) if part.numeric else values
        lists[part.name] = typed if len(typed) == length else np.broadcast_to(typed, (length, typed.shape[1]))
    return lists
