"""The door for columns: the same check as `Door.admit`, on whole columns at once.

Masks find the rows that do not fit; only these become Python values, so that `reason` can say why in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
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

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Converted:
    """A column in the log's type, and the rows whose value does not fit it (null there)."""

    values: pa.Array
    bad: Mask


def admit_table(door: Door, table: pa.Table, received: int | None) -> Admitted:
    """Check a table with the columns `kind`, `at`, optionally `id`, and keys and fields under their own names.

    A null is a value that is absent. `at` may be an Arrow timestamp. `line` in a refusal is the row, from 1. Raises
    ValueError where the table itself is damaged or names a column twice.
    """
    table.validate(full=True)
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(
            f"the table names a column twice: {', '.join(table.column_names)}; columns need names of their own"
        )
    table = table.combine_chunks()
    codes = kind_codes(door, table)
    refused = codes < 0
    parts: list[pa.Table] = []
    places: list[NDArray[np.intp]] = []
    for kind in door.kinds.values():
        rows = np.flatnonzero(codes == kind.code)
        if len(rows):
            own = table if len(rows) == len(table) else table.take(pa.array(rows))
            columns, bad = check_kind(door, kind, own, door.latest(received))
            refused[rows[bad]] = True
            parts.append(columns if not bad.any() else columns.filter(pa.array(~bad)))
            places.append(rows[~bad])
    refusals = name_refusals(door, table, np.flatnonzero(refused), door.latest(received))
    return Admitted(received, refusals, table=in_given_order(door, parts, places))


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
    if not is_text(column.type):
        return none
    encoded = column if pt.is_dictionary(column.type) else column.dictionary_encode()
    known = [door.kinds[text].code if text in door.kinds else -1 for text in encoded.dictionary.to_pylist()]
    indices = pc.fill_null(pc.cast(encoded.indices, pa.int64()), len(known)).to_numpy(zero_copy_only=False)
    codes: NDArray[np.int16] = np.array([*known, -1], np.int16)[indices]
    return codes


def check_kind(door: Door, kind: Kind, table: pa.Table, latest: int) -> tuple[pa.Table, Mask]:
    """The rows of one kind as the log's columns, and which of them do not fit."""
    bad = np.zeros(len(table), bool)
    at = to_time(table)
    times = pc.fill_null(at.values, -1).to_numpy(zero_copy_only=False)
    bad |= at.bad | (times < 0) | (times > latest)
    identifier = to_type(table, "id", pa.string())
    bad |= identifier.bad
    size = text_sizes(identifier.values)
    arrays: list[pa.Array] = []
    keys = {key.name for key in kind.schema.keys}
    for name, column in zip(kind.names, kind.columns, strict=True):
        converted = to_type(table, name, column.type)
        absent = converted.values.is_null().to_numpy(zero_copy_only=False)
        size += text_sizes(converted.values)
        bad |= converted.bad
        if name in keys:
            bad |= absent | pc.fill_null(pc.equal(converted.values, ""), False).to_numpy(zero_copy_only=False)
        elif not (value_type(kind.schema.fields[name]) or ("", True))[1]:
            bad |= absent
        arrays.append(converted.values)
    bad |= size > door.max_bytes
    for name in set(table.column_names) - {"id", "at", "kind", *kind.names}:
        bad |= present(whole(table, name))
    ids = pc.if_else(pc.equal(identifier.values, ""), pa.scalar(None, pa.string()), identifier.values)
    kinds = door.kind_column(np.full(len(table), kind.code, np.int16))
    envelope = pa.schema([("id", pa.string()), ("at", pa.int64()), ("kind", KIND_TYPE)])
    return pa.Table.from_arrays([ids, at.values, kinds, *arrays], schema=pa.schema([*envelope, *kind.columns])), bad


def to_time(table: pa.Table) -> Converted:
    """The column `at` as ms UTC; timestamps are converted, rounding down to the millisecond."""
    if "at" in table.column_names and pt.is_timestamp(whole(table, "at").type):
        floored = pc.floor_temporal(whole(table, "at"), unit="millisecond")
        milliseconds = pc.cast(floored, pa.timestamp("ms"), safe=False)
        return Converted(pc.cast(milliseconds, pa.int64()), np.zeros(len(table), bool))
    return to_type(table, "at", pa.int64())


def to_type(table: pa.Table, name: str, wanted: pa.DataType) -> Converted:
    """A column in a type of the log. What is no such value (or not finite, or too large) is bad, and null."""
    if name not in table.column_names:
        return Converted(pa.nulls(len(table), wanted), np.zeros(len(table), bool))
    column = whole(table, name)
    if not holds(column.type, wanted):
        return Converted(pa.nulls(len(table), wanted), present(column))
    bad = np.zeros(len(table), bool)
    if wanted == pa.int64() and column.type == pa.uint64():
        bad = pc.fill_null(pc.greater(column, 2**63 - 1), False).to_numpy(zero_copy_only=False)
    elif wanted == pa.float64() and pt.is_floating(column.type):
        bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False)
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
        return bool((pt.is_list(given) or pt.is_large_list(given)) and is_text(given.value_type))
    if wanted == pa.string():
        return is_text(given)
    if wanted == pa.float64():
        return bool(pt.is_floating(given) or pt.is_integer(given))
    return bool(pt.is_integer(given) if wanted == pa.int64() else pt.is_boolean(given))


def is_text(given: pa.DataType) -> bool:
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


def name_refusals(door: Door, table: pa.Table, rows: NDArray[np.intp], latest: int) -> list[Refusal]:
    """The reason for each refused row."""
    if not len(rows):
        return []
    chosen = table.take(pa.array(rows))
    if "at" in table.column_names and pt.is_timestamp(whole(table, "at").type):
        chosen = chosen.set_column(chosen.column_names.index("at"), "at", to_time(chosen.combine_chunks()).values)
    refusals: list[Refusal] = []
    for row, event in zip(rows.tolist(), chosen.to_pylist(), strict=True):
        given: dict[str, Any] = {name: value for name, value in event.items() if value is not None}
        why = reason(given, door.schemas, latest, door.max_bytes)
        refusals.append(Refusal(row + 1, why or f"cannot be read as the columns of {given['kind']}"))
    return refusals
