"""How events lie on disk: chunks (Arrow, inside the database) and sealed parts (Parquet files beside it).

Every chunk and part carries a CRC32 of its bytes, checked whenever it is read. Columns without any value are left
out; columns that were declared later read as null.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist.durable import write_durably
from shortlist.events.batch import KIND_TYPE, Batch
from shortlist.events.log import LogCorruptError, LogError

PART_EVENTS = 524_288
ROW_GROUP = 131_072


@dataclass(frozen=True)
class Stored:
    """Where a run of events lies: offsets from `first` on, `count` of them; `crc` is the CRC32 of its bytes."""

    first: int
    count: int
    crc: int
    size: int

    @property
    def stop(self) -> int:
        """The offset after its last event."""
        return self.first + self.count

    @property
    def name(self) -> str:
        """The file name of this run as a part."""
        return f"part-{self.first:015d}-{self.stop:015d}.parquet"


def to_store(table: pa.Table) -> pa.Table:
    """The columns worth storing: offsets follow from the place, columns without a value from the schema."""
    needed = {"at", "received", "kind"}
    names = [name for name in table.column_names if name in needed or table.column(name).null_count < len(table)]
    return table.select([name for name in names if name != "offset"])


def restored(table: pa.Table, first: int, schema: pa.Schema, place: str) -> Batch:
    """Stored columns as a batch of today's schema. Raises LogError for a field whose type was changed."""
    columns = {"offset": pa.array(np.arange(first, first + len(table), dtype=np.int64))}
    for name in table.column_names:
        column = table.column(name)
        if name == "kind":
            columns[name] = column if column.type == KIND_TYPE else pc.cast(column, KIND_TYPE)
        elif schema.get_field_index(name) >= 0:
            columns[name] = retyped(column, schema.field(name), place)
    return Batch(pa.table(columns), schema)


def retyped(column: pa.ChunkedArray, declared: pa.Field, place: str) -> pa.ChunkedArray:
    """A stored column in the type that is declared today."""
    if column.type == declared.type:
        return column
    try:
        return pc.cast(column, declared.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LogError(
            f"{place}: {declared.name} was stored as {column.type} and is declared as {declared.type} now: {error}; "
            "declare the new type under a new name"
        ) from error


def encode_chunk(table: pa.Table) -> bytes:
    """A table as the bytes of an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def decode_chunk(stored: Stored, payload: bytes, schema: pa.Schema, place: str) -> Batch:
    """The events of a chunk. Raises LogCorruptError where its bytes are not those that were written."""
    where = f"{place}: the chunk of offsets {stored.first} to {stored.stop}"
    if zlib.crc32(payload) != stored.crc:
        raise damaged(where, stored, "its checksum does not match")
    try:
        table = pa.ipc.open_stream(payload).read_all()
    except pa.ArrowInvalid as error:
        raise damaged(where, stored, str(error)) from error
    return restored(table, stored.first, schema, where)


def damaged(where: str, stored: Stored, found: str) -> LogCorruptError:
    """The error for a damaged chunk or part, which says how to go on."""
    return LogCorruptError(
        f"{where} is damaged: {found}; restore it from a backup, or read on behind it with scan(start={stored.stop})"
    )


def write_part(folder: Path, table: pa.Table, first: int) -> Stored:
    """Write a sealed part aside, flush it to the disk, and give it its name. Raises OSError, leaving nothing behind."""
    folder.mkdir(exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)
    data = sink.getvalue()
    part = Stored(first, len(table), zlib.crc32(data), data.size)
    write_durably(folder / part.name, data)
    return part


def read_part(folder: Path, part: Stored, schema: pa.Schema) -> Batch:
    """The events of a sealed part, as columns of `schema`.

    Raises LogCorruptError where the file is gone, cut short or changed.
    """
    path = folder / part.name
    try:
        with pa.memory_map(str(path)) as source:
            data = source.read_buffer()
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(str(path), part, f"it cannot be read ({error})") from error
    if data.size != part.size:
        raise damaged(str(path), part, f"it has {data.size} bytes and was written with {part.size}")
    if zlib.crc32(data) != part.crc:
        raise damaged(str(path), part, "its checksum does not match")
    file = pq.ParquetFile(pa.BufferReader(data))
    wanted = [name for name in file.schema_arrow.names if name in schema.names]
    return restored(file.read(columns=wanted), part.first, schema, str(path))
