"""Events as columns: what the log stores, scans and hands to its listeners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shortlist.events.schema import EventSchema, value_type

ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list[str]": pa.list_(pa.string()),
}
KIND_TYPE = pa.dictionary(pa.int16(), pa.string())
ENVELOPE = pa.schema(
    [("offset", pa.int64()), ("id", pa.string()), ("at", pa.int64()), ("received", pa.int64()), ("kind", KIND_TYPE)]
)
"""The columns that every event has: `at` and `received` in ms since 1970 UTC, `id` null where none was given."""


def wide_schema(schemas: Iterable[EventSchema]) -> pa.Schema:
    """The envelope, one nullable string column per entity key ("user"), one nullable column per "kind.field".

    Raises ValueError for a field type that the log cannot hold.
    """
    keys: dict[str, pa.Field] = {}
    fields: list[pa.Field] = []
    for schema in schemas:
        keys.update((key.name, pa.field(key.name, pa.string())) for key in schema.keys)
        for name, declared in schema.fields.items():
            known = value_type(declared)
            if known is None:
                raise ValueError(
                    f"{schema.place}: field {schema.kind}.{name} has the type {declared!r}, which no column can hold"
                )
            fields.append(pa.field(schema.column(name), ARROW_TYPES[known[0]]))
    return pa.schema([*ENVELOPE, *keys.values(), *fields])


class Batch:
    """Events in offset order, as columns of the log's wide schema.

    `stored` may lack columns of the schema (none of its events has them); they read as null. Reading a column
    costs nothing until it is asked for.
    """

    def __init__(self, stored: pa.Table, schema: pa.Schema) -> None:
        self.stored = stored.combine_chunks()
        self.schema = schema

    def __reduce__(self) -> tuple[type[Batch], tuple[pa.Table, pa.Schema]]:
        return Batch, (self.stored, self.schema)  # what was read of it can be read again

    def __len__(self) -> int:
        return int(self.stored.num_rows)

    def __repr__(self) -> str:
        return f"Batch({len(self)} events, offsets {self.start} to {self.stop})"

    @cached_property
    def table(self) -> pa.Table:
        """Every column of the wide schema."""
        return pa.Table.from_arrays([self._column(name) for name in self.schema.names], schema=self.schema)

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """Each event's place in the log."""
        return self._integers("offset")

    @cached_property
    def at(self) -> NDArray[np.int64]:
        """When each event happened, ms since 1970 UTC."""
        return self._integers("at")

    @cached_property
    def received(self) -> NDArray[np.int64]:
        """When the log learned of each event, ms since 1970 UTC."""
        return self._integers("received")

    @property
    def start(self) -> int:
        """The offset of the first event; 0 where the batch is empty."""
        return int(self.offset[0]) if len(self) else 0

    @property
    def stop(self) -> int:
        """The offset after the last event; 0 where the batch is empty."""
        return int(self.offset[-1]) + 1 if len(self) else 0

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that `kind_codes` index; some may have no event here."""
        return tuple(self._column("kind").dictionary.to_pylist())

    @cached_property
    def kind_codes(self) -> NDArray[np.int16]:
        """Each event's kind as an index into `kinds`."""
        codes: NDArray[np.int16] = self._column("kind").indices.to_numpy(zero_copy_only=False)
        return codes

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """True for each event of that kind; all False where the batch has none."""
        code = self.kinds.index(kind) if kind in self.kinds else -1
        mask: NDArray[np.bool_] = self.kind_codes == code
        return mask

    def has(self, column: str) -> bool:
        """Whether any event has a value in that column. Raises KeyError where the schema lacks it."""
        return bool(self._column(column).null_count < len(self))

    def strings(self, column: str) -> pa.Array:
        """A column of strings (or of lists of strings) as an Arrow array. Raises KeyError where the schema lacks it."""
        return self._column(column)

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A numeric or boolean column as float64: NaN for null, booleans as 0 and 1, integers beyond 2^53 rounded."""
        array = pc.cast(self._column(column), pa.float64(), safe=False)
        values: NDArray[np.float64] = array.to_numpy(zero_copy_only=False)
        return values

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> Batch:
        """The chosen events: a mask, or indexes that rise."""
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Batch(self.stored.take(pa.array(chosen)), self.schema)

    def slice(self, start: int, stop: int) -> Batch:
        """The events with offsets from `start` up to, not including, `stop`; no copy."""
        first, last = np.searchsorted(self.offset, [start, stop])
        return Batch(self.stored.slice(first, last - first), self.schema)

    def _integers(self, name: str) -> NDArray[np.int64]:
        values: NDArray[np.int64] = self._column(name).to_numpy(zero_copy_only=False)
        return values

    def _column(self, name: str) -> pa.Array:
        if self.stored.schema.get_field_index(name) >= 0:
            column = self.stored.column(name)
            return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
        if name not in self.schema.names:
            raise KeyError(f"the log has no column {name!r}; it has {', '.join(self.schema.names)}")
        return pa.nulls(len(self), self.schema.field(name).type)


def joined(batches: Sequence[Batch]) -> Batch:
    """Consecutive batches of one log as one."""
    if len(batches) == 1:
        return batches[0]
    stored = pa.concat_tables([batch.stored for batch in batches], promote_options="default")
    return Batch(stored.unify_dictionaries(), batches[0].schema)
