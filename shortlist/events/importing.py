"""History from files: JSON lines, CSV, Parquet and Arrow, exactly once.

A file is read whole, checked, sorted by event time (stable), and appended in blocks. How far it has come is stored in
the transaction of each block, so that an import that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b, file_digest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pyarrow.types as pt

from shortlist.events.columnar import admit_table
from shortlist.events.door import Admitted, Door, read_array, read_lines
from shortlist.events.log import EventLog, LogError, Progress
from shortlist.events.reasons import Refusal
from shortlist.framing.problems import nearest

AS_NAMED: Mapping[str, str] = MappingProxyType({})
BLOCK = 262_144
JSON_BLOCK_BYTES = 2**24
REFUSALS_KEPT = 100
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow", ".feather")

Tick = Callable[[int, int], None]
"""Told of progress: events done, events in all."""


@dataclass(frozen=True)
class Imported:
    """What became of a source: counts of its events, and the first REFUSALS_KEPT refused lines with their reasons.

    `resumed_at` is how many of its events earlier runs had stored already.
    """

    source: str
    accepted: int
    duplicates: int
    refused: int
    refusals: list[Refusal]
    resumed_at: int = 0


def import_file(
    log: EventLog,
    path: Path,
    kind: str = "",
    tick: Tick | None = None,
    columns: Mapping[str, str] = AS_NAMED,
) -> Imported:
    """Append a file of history; its name's ending says what it is (.jsonl .ndjson .csv .parquet .arrow .feather).

    `kind` is that of every event, where the file has no column `kind`; `columns` maps names of keys and fields to the
    file's own columns, and leaves out the file's columns that then mean nothing. Every event counts as received when it
    happened. A file whose import is complete is not read again. Raises LogError where the file cannot be read, or has
    changed since it was imported.
    """
    source = str(path.resolve())
    try:
        with path.open("rb") as file:
            digest = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from error
    done = resume_point(log, source, digest)
    if done is None:
        return finished(log, source)
    return append_sorted(log, read_file(log.door, path, kind, columns), source, digest, done, tick)


def import_table(log: EventLog, table: pa.Table, source: str, tick: Tick | None = None) -> Imported:
    """Append a table of history, in the columns that `EventLog.append` takes; `source` names it for resuming."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest = blake2b(sink.getvalue(), digest_size=16).hexdigest()
    done = resume_point(log, source, digest)
    if done is None:
        return finished(log, source)
    return append_sorted(log, admit_table(log.door, table, None), source, digest, done, tick)


def resume_point(log: EventLog, source: str, digest: str) -> int | None:
    """How many events of a source are stored already; None where all are. Raises LogError where it has changed."""
    found = log.progress(source)
    if found is None:
        return 0
    if found.digest == digest:
        return None
    if found.digest == unfinished(log, digest):
        return found.rows
    raise LogError(
        f"{source}: {found.rows} events of it are in the log, and it (or the project's events) has changed since; "
        "to add to them, import what is new from a file of its own"
    )


def unfinished(log: EventLog, digest: str) -> str:
    """The digest under which an import is noted until it is complete: which events pass depends on the schemas too."""
    return f"{digest} of {blake2b(log.door.columns.to_string().encode(), digest_size=8).hexdigest()}"


def finished(log: EventLog, source: str) -> Imported:
    """What an import that was complete already comes to."""
    found = log.progress(source)
    return Imported(source, 0, 0, 0, [], found.rows if found else 0)


def append_sorted(
    log: EventLog, admitted: Admitted, source: str, digest: str, done: int, tick: Tick | None
) -> Imported:
    """Append what passed the door, from event `done` on, in blocks by event time."""
    table = admitted.table if admitted.table is not None else log.door.tabulate(admitted.rows)
    at = table.column("at").to_numpy()
    if len(at) and (np.diff(at) < 0).any():
        table = table.take(pa.array(np.argsort(at, kind="stable")))
    accepted = duplicates = 0
    for start in range(done, max(len(table), done + 1), BLOCK):
        stop = min(start + BLOCK, len(table))
        note = Progress(source, digest if stop == len(table) else unfinished(log, digest), stop)
        receipt = log.append_imported(Admitted(None, [], table=table.slice(start, stop - start)), note)
        accepted += receipt.accepted
        duplicates += receipt.duplicates
        if tick is not None:
            tick(stop, len(table))
    refusals = admitted.refusals
    return Imported(source, accepted, duplicates, len(refusals), refusals[:REFUSALS_KEPT], done)


def read_file(door: Door, path: Path, kind: str, columns: Mapping[str, str]) -> Admitted:
    """A file's events, checked. Raises LogError where its format is unknown, or is not what its name says."""
    ending = path.suffix.lower()
    for name in columns:
        if name not in names_of(door):
            raise LogError(f"no kind of event has a key or field {name!r}; {nearest(name, names_of(door))}")
    try:
        if ending in (".jsonl", ".ndjson", ".json"):
            return read_json(door, path, kind, columns)
        if ending == ".csv":
            return read_csv(door, path, kind, columns)
        if ending == ".parquet":
            return admit_table(door, prepared(door, pq.read_table(path), path, kind, columns), None)
        if ending in (".arrow", ".feather"):
            with pa.memory_map(str(path)) as source:
                return admit_table(door, prepared(door, pa.ipc.open_file(source).read_all(), path, kind, columns), None)
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise LogError(f"{path} cannot be read as {ending}: {error}") from error
    raise LogError(f"{path}: the ending {ending!r} is unknown; {nearest(ending, ENDINGS)}")


def names_of(door: Door) -> set[str]:
    """Everything that a column may be called."""
    keys = {key.name for schema in door.schemas.values() for key in schema.keys}
    return {"id", "at", "kind", *keys, *(name for schema in door.schemas.values() for name in schema.fields)}


def read_json(door: Door, path: Path, kind: str, columns: Mapping[str, str]) -> Admitted:
    """JSON lines in blocks, or one JSON array."""

    def adapted(event: Any) -> Any:
        """The event under the log's names; what has no name there is left out where names are given."""
        if not isinstance(event, dict):
            return event
        kept = {name: value for name, value in event.items() if not columns or name in known}
        named = {name: event[column] for name, column in columns.items() if column in event}
        return {"kind": kind, **kept, **named} if kind else {**kept, **named}

    known = names_of(door) - set(columns.values())
    tables: list[pa.Table] = []
    refusals: list[Refusal] = []
    lines = 0
    with path.open("rb") as file:
        is_array = file.read(64).lstrip()[:1] == b"["
        file.seek(0)
        while block := file.read() if is_array else file.read(JSON_BLOCK_BYTES) + file.readline():
            if kind or columns:
                values = read_array(block) if is_array else read_lines(block)
                admitted = door.admit_each(((line, adapted(value)) for line, value in values), None)
            else:
                admitted = door.admit_json(block, None)
            refusals += [replace(refusal, line=refusal.line + lines) for refusal in admitted.refusals]
            tables += [door.tabulate(admitted.rows)] if admitted.rows else []
            lines += block.count(b"\n")
    joined = pa.concat_tables(tables, promote_options="default") if tables else door.columns.empty_table()
    return Admitted(None, refusals, table=joined.combine_chunks())


def read_csv(door: Door, path: Path, kind: str, columns: Mapping[str, str]) -> Admitted:
    """CSV with a header line: empty is absent, lists are separated by "|", `at` is ms or ISO 8601 (UTC by default)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    ragged: list[Refusal] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(Refusal(row.number, f"has {row.actual_columns} values, the header names {row.expected_columns}"))
        return "skip"

    table = pyarrow.csv.read_csv(
        path,
        pyarrow.csv.ReadOptions(use_threads=False),  # with threads, lines have no numbers
        pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )
    admitted = admit_table(door, prepared(door, table, path, kind, columns), None, is_text=True)
    lines = np.setdiff1d(np.arange(2, len(table) + len(ragged) + 2), [refusal.line for refusal in ragged])
    named = [replace(refusal, line=int(lines[refusal.line - 1])) for refusal in admitted.refusals]
    return replace(admitted, refusals=sorted([*ragged, *named], key=lambda refusal: refusal.line))


def renamed(table: pa.Table, path: Path, columns: Mapping[str, str], known: Collection[str]) -> pa.Table:
    """The table under the names that the log knows, without what else is in it. Raises LogError for a wrong name."""
    for column in columns.values():
        if column not in table.column_names:
            raise LogError(f"{path} has no column {column!r}; {nearest(column, table.column_names)}")
    kept = {name: table.column(name) for name in table.column_names if name in known and name not in columns.values()}
    return pa.table({**kept, **{name: table.column(column) for name, column in columns.items()}})


def prepared(door: Door, table: pa.Table, path: Path, kind: str, columns: Mapping[str, str]) -> pa.Table:
    """A file's table with the column `kind`, and whole numbers as ids written out. Raises LogError, naming a column."""
    if kind and "kind" not in table.column_names:
        table = table.append_column(
            "kind", pa.array([kind]).dictionary_encode().take(pa.array(np.zeros(len(table), int)))
        )
    keys = {key.name for schema in door.schemas.values() for key in schema.keys}
    known = names_of(door)
    if columns:
        table = renamed(table, path, columns, known)
    for place, name in enumerate(table.column_names):
        if name not in known:
            raise LogError(f"{path}: no kind of event has a key or field {name!r}; {nearest(name, known)}")
        if name in keys and pt.is_integer(table.column(name).type):
            table = table.set_column(place, name, pc.cast(table.column(name), pa.string()))
    return table
