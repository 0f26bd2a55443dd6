"""The door for columns: the same check as `Door.admit`, on whole columns at once.

Masks find the rows that do not fit; only these become Python values, so that `reason` can say why in the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from shortlist.events.batch import KIND_TYPE
from shortlist.events.door import Admitted, Door, Kind
from shortlist.events.reasons import Refusal, reason
from shortlist.events.schema import value_type

SLICE_ROWS = 2**20
SLICE_BYTES = 2**30

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Converted:
    """A column in the log's type, and the rows whose value does not fit it (null there)."""

    values: pa.Array
    bad: Mask


def admit_table(door: Door, table: pa.Table, received: int | None, is_text: bool = False) -> Admitted:
    """Check a table with the columns `kind`, `at`, optionally `id`, and keys and fields under their own names.

    A null is a value that is absent. `at` may be an Arrow timestamp. `is_text`: the values are texts to be parsed.
    `line` in a refusal is the row, from 1. Raises ValueError where the table itself is damaged or names a column twice.
    """
    table.validate(full=True)
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"the table names a column twice: {', '.join(table.column_names)}; rename one of them")
    parts: list[pa.Table] = []
    refusals: list[Refusal] = []
    step = int(min(SLICE_ROWS, max(1, SLICE_BYTES * len(table) // max(1, table.nbytes))))
    for start in range(0, len(table), step):
        admitted = Slice(door, table.slice(start, step).combine_chunks(), door.latest(received), is_text).check()
        parts.append(admitted.table)
        refusals += [Refusal(refusal.line + start, refusal.reason) for refusal in admitted.refusals]
    joined = pa.concat_tables(parts, promote_options="default") if parts else door.columns.empty_table()
    return Admitted(received, refusals, table=joined)


@dataclass(frozen=True)
class Slice:
    """Rows under check; `latest` bounds their time, ms UTC."""

    door: Door
    table: pa.Table
    latest: int
    is_text: bool

    def check(self) -> Admitted:
        """The rows that fit as the log's columns, in their order, and why the others do not."""
        codes = kind_codes(self.door, self.table)
        refused = codes < 0
        parts: list[pa.Table] = []
        places: list[NDArray[np.intp]] = []
        for kind in self.door.kinds.values():
            rows = np.flatnonzero(codes == kind.code)
            if len(rows):
                own = self.table if len(rows) == len(self.table) else self.table.take(pa.array(rows))
                columns, bad = self.check_kind(kind, own)
                refused[rows[bad]] = True
                parts.append(columns if not bad.any() else columns.filter(pa.array(~bad)))
                places.append(rows[~bad])
        refusals = self.name_refusals(np.flatnonzero(refused))
        return Admitted(None, refusals, table=in_given_order(self.door, parts, places))

    def check_kind(self, kind: Kind, table: pa.Table) -> tuple[pa.Table, Mask]:
        """The rows of one kind as the log's columns, and which of them do not fit."""
        bad = np.zeros(len(table), bool)
        at = to_time(table, self.is_text)
        times = pc.fill_null(at.values, -1).to_numpy(zero_copy_only=False)
        bad |= at.bad | (times < 0) | (times > self.latest)
        identifier = to_type(table, "id", pa.string(), self.is_text)
        bad |= identifier.bad
        size = text_sizes(identifier.values)
        arrays: list[pa.Array] = []
        keys = {key.name for key in kind.schema.keys}
        for name, column in zip(kind.names, kind.columns, strict=True):
            converted = to_type(table, name, column.type, self.is_text)
            absent = converted.values.is_null().to_numpy(zero_copy_only=False)
            size += text_sizes(converted.values)
            bad |= converted.bad
            if name in keys:
                bad |= absent | pc.fill_null(pc.equal(converted.values, ""), False).to_numpy(zero_copy_only=False)
            elif not (value_type(kind.schema.fields[name]) or ("", True))[1]:
                bad |= absent
            arrays.append(converted.values)
        bad |= size > self.door.max_bytes
        for name in set(table.column_names) - {"id", "at", "kind", *kind.names}:
            bad |= present(whole(table, name))
        ids = pc.if_else(pc.equal(identifier.values, ""), pa.scalar(None, pa.string()), identifier.values)
        kinds = self.door.kind_column(np.full(len(table), kind.code, np.int16))
        envelope = pa.schema([("id", pa.string()), ("at", pa.int64()), ("kind", KIND_TYPE)])
        return pa.Table.from_arrays([ids, at.values, kinds, *arrays], schema=pa.schema([*envelope, *kind.columns])), bad

    def name_refusals(self, rows: NDArray[np.intp]) -> list[Refusal]:
        """The reason for each refused row."""
        if not len(rows):
            return []
        chosen = self.table.take(pa.array(rows)).combine_chunks()
        if "at" in chosen.column_names and pt.is_timestamp(whole(chosen, "at").type):
            chosen = chosen.set_column(chosen.column_names.index("at"), "at", to_time(chosen, self.is_text).values)
        refusals: list[Refusal] = []
        for row, event in zip(rows.tolist(), chosen.to_pylist(), strict=True):
            given = {name: value for name, value in event.items() if value is not None}
            if self.is_text:
                given = self.parsed_row(given)
            why = reason(given, self.door.schemas, self.latest, self.door.max_bytes)
            refusals.append(Refusal(row + 1, why or f"cannot be read as the columns of {given['kind']}"))
        return refusals

    def parsed_row(self, given: dict[str, Any]) -> dict[str, Any]:
        """A row of texts with each value in its type, or still the text where it is no such value."""
        kind = self.door.kinds.get(given.get("kind", ""))
        types = dict(zip(kind.names, kind.columns.types, strict=True)) if kind else {}
        row = {name: parsed(value, types.get(name, pa.string())) for name, value in given.items()}
        return {**row, "at": parsed_time(given["at"])} if isinstance(given.get("at"), str) else row


def in_given_order(door: Door, parts: list[pa.Table], places: list[NDArray[np.intp]]) -> pa.Table:
    """The admitted rows of every kind, where they stood in the table that was given."""
    if not parts:
        return door.columns.empty_table()
    joined = pa.concat_tables(parts, promote_options="default")
    if len(parts) == 1:
        return joined
    return joined.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))


def kind_codes(door: Door, table: pa.Table) -> NDArray[np.int16]:
    """Each row's kind as its code in the door, -1 where it is missing or unknown."""
    none = np.full(len(table), -1, np.int16)
    if "kind" not in table.column_names or not len(table):
        return none
    column = whole(table, "kind")
    if not is_text_type(column.type):
        return none
    encoded = column if pt.is_dictionary(column.type) else column.dictionary_encode()
    known = [door.kinds[text].code if text in door.kinds else -1 for text in encoded.dictionary.to_pylist()]
    indices = pc.fill_null(pc.cast(encoded.indices, pa.int64()), len(known)).to_numpy(zero_copy_only=False)
    codes: NDArray[np.int16] = np.array([*known, -1], np.int16)[indices]
    return codes


def to_time(table: pa.Table, is_text: bool) -> Converted:
    """The column `at` as ms UTC; timestamps are converted, rounding down to the millisecond."""
    if is_text and "at" in table.column_names and is_text_type(whole(table, "at").type):
        return Converted(*from_text(whole(table, "at"), pa.int64(), parsed_time))
    if "at" in table.column_names and pt.is_timestamp(whole(table, "at").type):
        floored = pc.floor_temporal(whole(table, "at"), unit="millisecond")
        milliseconds = pc.cast(floored, pa.timestamp("ms"), safe=False)
        return Converted(pc.cast(milliseconds, pa.int64()), np.zeros(len(table), bool))
    return to_type(table, "at", pa.int64(), is_text)


def to_type(table: pa.Table, name: str, wanted: pa.DataType, is_text: bool) -> Converted:
    """A column in a type of the log. What is no such value (or not finite, or too large) is bad, and null."""
    if name not in table.column_names:
        return Converted(pa.nulls(len(table), wanted), np.zeros(len(table), bool))
    column = whole(table, name)
    unread = np.zeros(len(table), bool)
    if is_text and wanted != pa.string() and is_text_type(column.type):
        column, unread = from_text(column, wanted, partial(parsed, wanted=wanted))
    if not holds(column.type, wanted):
        return Converted(pa.nulls(len(table), wanted), present(column))
    bad = unread
    if wanted == pa.int64() and column.type == pa.uint64():
        bad |= pc.fill_null(pc.greater(column, pa.scalar(2**63 - 1, pa.uint64())), False).to_numpy(zero_copy_only=False)
    elif wanted == pa.float64() and pt.is_floating(column.type):
        bad |= pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False)
    elif pt.is_list(wanted) and column.flatten().null_count:
        parents = pc.list_parent_indices(column)
        bad[parents.to_numpy()[column.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
    if bad.any():
        column = pc.if_else(pa.array(bad), pa.scalar(None, column.type), column)
    return Converted(column if column.type == wanted else pc.cast(column, wanted, safe=False), bad)


def holds(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of the type `given` holds values of the log's type `wanted` (or nothing at all)."""
    if pt.is_null(given):
        return True
    if pt.is_list(wanted):
        return bool((pt.is_list(given) or pt.is_large_list(given)) and is_text_type(given.value_type))
    if wanted == pa.string():
        return is_text_type(given)
    if wanted == pa.float64():
        return bool(pt.is_floating(given) or pt.is_integer(given))
    return bool(pt.is_integer(given) if wanted == pa.int64() else pt.is_boolean(given))


def from_text(column: pa.Array, wanted: pa.DataType, parse: Callable[[str], Any]) -> tuple[pa.Array, Mask]:
    """Texts as values of the log's type, and which of them are none (null there, where `parse` returns the text)."""
    if pt.is_list(wanted):
        return pc.split_pattern(column, "|"), np.zeros(len(column), bool)
    try:
        return pc.cast(pc.utf8_trim_whitespace(column), wanted), np.zeros(len(column), bool)
    except pa.ArrowInvalid:  # one of them is none: look at each
        values = [None if text is None else parse(text) for text in column.to_pylist()]
        bad = np.array([isinstance(value, str) for value in values], bool)
        return pa.array([None if isinstance(value, str) else value for value in values], wanted), bad


def parsed(text: str, wanted: pa.DataType) -> Any:
    """A text as a value of the log's type; the text itself where it is none."""
    if wanted == pa.string():
        return text
    if pt.is_list(wanted):
        return text.split("|")
    if wanted == pa.bool_():
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    try:
        if wanted == pa.float64():
            return float(text)
        return int(text) if -(2**63) <= int(text) < 2**63 else text
    except ValueError:
        return text


def parsed_time(text: str) -> Any:
    """A time as ms UTC: a whole number, or ISO 8601 (UTC where it names no zone); the text itself where it is none."""
    number = parsed(text, pa.int64())
    if not isinstance(number, str):
        return number
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return text
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def is_text_type(given: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    inner = given.value_type if pt.is_dictionary(given) else given
    return bool(pt.is_string(inner) or pt.is_large_string(inner) or pt.is_string_view(inner))


def present(column: pa.Array) -> Mask:
    """True for each row that has a value."""
    mask: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return mask


def text_sizes(column: pa.Array) -> NDArray[np.int64]:
    """The UTF-8 bytes of the texts in each row of a column of the log."""
    if pt.is_string(column.type):
        sizes: NDArray[np.int64] = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        return sizes.astype(np.int64)
    if pt.is_list(column.type):
        lengths = pc.fill_null(pc.binary_length(column.flatten()), 0).to_numpy(zero_copy_only=False)
        parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        return np.bincount(parents, weights=lengths, minlength=len(column)).astype(np.int64)
    return np.zeros(len(column), np.int64)


def whole(table: pa.Table, name: str) -> pa.Array:
    """A column of a table of one chunk."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
