"""Schema checked at the door: an event that does not fit is refused with its reason, the others are let in.

The fast path decodes straight into one msgspec struct per kind, which checks keys, types, finiteness and unknown
fields at once. Only where that fails are the events looked at one by one, to name each refused one and why.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter, or_
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from shortlist.events.batch import ARROW_TYPES, KIND_TYPE, wide_schema
from shortlist.events.reasons import Refusal, reason, text_bytes
from shortlist.events.schema import RESERVED, Event, EventSchema, value_type

MAX_FUTURE_MS = 300_000
MAX_BYTES = 65_536
LARGEST = float(np.finfo(np.float64).max)

Name = Annotated[str, msgspec.Meta(min_length=1)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Finite = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
STRUCT_TYPES: Mapping[str, Any] = {"str": str, "int": Integer, "float": Finite, "bool": bool, "list[str]": list[str]}

Row = Any
"""An admitted event: an instance of its kind's struct."""


@dataclass(frozen=True)
class Admitted:
    """What passed the door, in the order given, and what did not.

    Either `rows` (structs, not yet columns) or `table` (columns id, at, kind and the events' own) is set. `received`
    is ms UTC; None says that each event was learned when it happened (imported history).
    """

    received: int | None
    refusals: list[Refusal]
    rows: Sequence[Row] = ()
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.table is None else int(self.table.num_rows)

    @property
    def ids(self) -> Sequence[str | None]:
        """Each event's id, None or "" where it has none."""
        if self.table is None:
            return [row.id for row in self.rows]
        ids: list[str | None] = self.table.column("id").to_pylist()
        return ids


@dataclass(frozen=True)
class Kind:
    """One kind of event, compiled: its struct, and which columns its values go to."""

    code: int
    schema: EventSchema
    struct: type[Any]
    names: tuple[str, ...]
    columns: pa.Schema
    values: attrgetter[Any]


def compile_kind(code: int, schema: EventSchema) -> Kind:
    """The struct of a kind: keys and fields under private attribute names, so that any name is allowed."""
    members: list[Any] = [("id", str | None, None), ("at", Time)]
    optional: list[Any] = []
    types: dict[str, pa.DataType] = {}
    names = (*(key.name for key in schema.keys), *schema.fields)
    for number, name in enumerate(names):
        if name in types or name in RESERVED:
            reserved = ", ".join(sorted(RESERVED))
            raise ValueError(f"{schema.place}: {schema.kind} declares {name!r} twice, or it is reserved ({reserved})")
        if number < len(schema.keys):
            types[name] = pa.string()
            members.append((f"v{number}", Name))
            continue
        known = value_type(schema.fields[name])
        if known is None:
            found = repr(schema.fields[name])
            raise ValueError(f"{schema.place}: {schema.kind}.{name} has the type {found}, which no column can hold")
        types[name] = ARROW_TYPES[known[0]]
        declared = STRUCT_TYPES[known[0]]
        (optional if known[1] else members).append(
            (f"v{number}", declared | None, None) if known[1] else (f"v{number}", declared)
        )
    required = [member for member in members if len(member) == 2]
    struct = msgspec.defstruct(
        f"Kind{code}",
        [*required, members[0], *optional],
        tag=schema.kind,
        tag_field="kind",
        rename={f"v{number}": name for number, name in enumerate(names)},
        forbid_unknown_fields=True,
        gc=False,
        frozen=True,
    )
    columns = pa.schema([(schema.column(name), types[name]) for name in names])
    return Kind(code, schema, struct, names, columns, attrgetter("id", "at", *(f"v{n}" for n in range(len(names)))))


class Door:
    """The check that every event passes on its way into a log.

    `at` must lie between 1970 and `max_future_ms` after `received`; an event's texts may take `max_bytes` of UTF-8.
    Raises ValueError for declarations that contradict each other; `Project.problems()` names them more kindly.
    """

    def __init__(
        self, schemas: Iterable[EventSchema], max_future_ms: int = MAX_FUTURE_MS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.schemas: dict[str, EventSchema] = {}
        for schema in schemas:
            if self.schemas.setdefault(schema.kind, schema) is not schema:
                raise ValueError(f"{schema.place}: the kind {schema.kind!r} is declared twice; give one another name")
        if not self.schemas:
            raise ValueError("a log needs at least one kind of event; declare an entity or an event type")
        self.max_future_ms = max_future_ms
        self.max_bytes = max_bytes
        self.kinds = {name: compile_kind(code, schema) for code, (name, schema) in enumerate(self.schemas.items())}
        self.columns = wide_schema(self.schemas.values())
        self._dictionary = pa.array(list(self.kinds), pa.string())
        self._of_struct = {kind.struct: kind for kind in self.kinds.values()}
        self._any = reduce(or_, (kind.struct for kind in self.kinds.values()))
        self._lines = msgspec.json.Decoder(self._any)
        self._array = msgspec.json.Decoder(list[self._any])  # type: ignore[name-defined]
        self._encode = msgspec.json.Encoder().encode

    def admit(self, events: Iterable[Event | Mapping[str, Any]], received: int | None = None) -> Admitted:
        """Check events; `line` in a refusal is the event's place among them, from 1.

        `received` None: each event was learned when it happened, and none of them may lie in the clock's future.
        """
        flat = [event.to_dict() if isinstance(event, Event) else event for event in events]
        try:
            rows = msgspec.convert(flat, list[self._any])  # type: ignore[name-defined]
            if self._all_fit(rows, received):
                return Admitted(received, [], rows)
        except (msgspec.ValidationError, UnicodeEncodeError):
            pass  # the slow path below finds out which event it was, and why
        return self.admit_each(enumerate(flat, start=1), received)

    def admit_json(self, body: bytes, received: int | None = None) -> Admitted:
        """Check one JSON object, an array of objects or JSON lines.

        `line` in a refusal is the line, or the place in the array, from 1. An array that is no JSON is refused whole,
        as line 1. `received` as in `admit`.
        """
        is_array = body.lstrip()[:1] == b"["
        try:
            rows = self._array.decode(body) if is_array else self._lines.decode_lines(body)
            if (len(body) <= self.max_bytes or self._all_small(rows)) and self._all_timely(rows, received):
                return Admitted(received, [], rows)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # the slow path below finds out which event it was, and why
        return self.admit_each(read_array(body) if is_array else read_lines(body), received)

    def admit_each(self, events: Iterable[tuple[int, Any]], received: int | None) -> Admitted:
        """Check decoded events one by one, each given with its line; a ValueError in place of one is its reason."""
        rows: list[Row] = []
        refusals: list[Refusal] = []
        latest = self.latest(received)
        for line, event in events:
            plain = plain_values(event)
            why = reason(plain, self.schemas, latest, self.max_bytes)
            if not why:
                try:
                    rows.append(msgspec.convert(plain, self._any))
                except msgspec.ValidationError as error:  # a type that only looks like the right one
                    why = str(error)
            if why:
                refusals.append(Refusal(line, why))
        return Admitted(received, refusals, rows)

    def latest(self, received: int | None) -> int:
        """The latest event time, ms UTC, that is believed of events learned at `received` (None: of history)."""
        return (clock_ms() if received is None else received) + self.max_future_ms

    def tabulate(self, rows: Sequence[Row]) -> pa.Table:
        """Admitted events as columns id, at, kind and those that their kinds have, in the order given."""
        structs = set(map(type, rows))
        if len(structs) == 1:
            return self._tabulate_kind(self._of_struct[structs.pop()], rows)
        places: dict[Kind, list[int]] = {self._of_struct[struct]: [] for struct in structs}
        of_struct = {struct: places[self._of_struct[struct]] for struct in structs}
        for place, row in enumerate(rows):
            of_struct[type(row)].append(place)
        tables = [self._tabulate_kind(kind, [rows[place] for place in taken]) for kind, taken in places.items()]
        order = np.argsort(np.concatenate([np.array(taken) for taken in places.values()]), kind="stable")
        return pa.concat_tables(tables, promote_options="default").take(pa.array(order))

    def kind_column(self, codes: np.ndarray[Any, np.dtype[np.int16]]) -> pa.Array:
        """Codes of this door's kinds as the column `kind`."""
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int16()), self._dictionary)

    def _tabulate_kind(self, kind: Kind, rows: Sequence[Row]) -> pa.Table:
        ids, ats, *values = zip(*map(kind.values, rows), strict=True)
        arrays = [pa.array(value, field.type) for value, field in zip(values, kind.columns, strict=True)]
        kinds = self.kind_column(np.full(len(rows), kind.code, np.int16))
        known = pa.array([text or None for text in ids], pa.string())
        envelope = pa.schema([("id", pa.string()), ("at", pa.int64()), ("kind", KIND_TYPE)])
        schema = pa.schema([*envelope, *kind.columns])
        return pa.Table.from_arrays([known, pa.array(ats, pa.int64()), kinds, *arrays], schema=schema)

    def _all_fit(self, rows: Sequence[Row], received: int | None) -> bool:
        return self._all_small(rows) and self._all_timely(rows, received)

    def _all_timely(self, rows: Sequence[Row], received: int | None) -> bool:
        limit = self.latest(received)
        return all(row.at <= limit for row in rows)

    def _all_small(self, rows: Sequence[Row]) -> bool:
        """A row's JSON is never shorter than its texts; encoding also finds text that is no valid unicode."""
        encode, limit = self._encode, self.max_bytes
        return all(len(encode(row)) <= limit or text_bytes(msgspec.to_builtins(row)) <= limit for row in rows)


def clock_ms() -> int:
    """Now, in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


def plain_values(event: Any) -> Any:
    """The event with numpy scalars as Python's own; anything that is no mapping stays as it is."""
    if not isinstance(event, Mapping):
        return event
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in event.items()}


def read_array(body: bytes) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array with their places from 1; a `ValueError` in place of one that cannot be read."""
    try:
        elements = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield 1, ValueError(f"the array is no JSON: {error}")
        return
    for place, element in enumerate(elements, start=1):
        yield place, read_value(bytes(element))


def read_lines(body: bytes) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines with their line numbers from 1; a `ValueError` in place of one that cannot be read."""
    whole = read_value(body)
    if not isinstance(whole, ValueError):
        yield 1 + body[: len(body) - len(body.lstrip())].count(b"\n"), whole
        return
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            yield number, read_value(line)


def read_value(text: bytes) -> Any:
    """One JSON value, or the ValueError that says why it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return ValueError(f"no JSON: {error}")
