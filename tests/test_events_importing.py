"""History from files: every format the same, exactly once, going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from shortlist.events import importing
from shortlist.events.importing import import_file, import_table
from shortlist.events.log import EventLog, LogError, MemoryLog, Receipt
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import SqliteLog

USER = Entity("user", age=int)
FILM = Entity("film", title=str, genres=list[str])
WATCH = EventSchema("watch", (USER, FILM), {"seconds": float, "live": bool | None, "place": int | None})
SCHEMAS = [USER.schema, FILM.schema, WATCH]
EVENTS: list[dict[str, Any]] = [
    {"kind": "watch", "at": 30, "user": "ü", "film": "f,1", "seconds": 1.5, "live": True, "place": 3},
    {"kind": "film", "at": 10, "film": "f,1", "title": 'The "One"\nand only', "genres": ["a", "b"]},
    {"kind": "watch", "at": 20, "user": "u2", "film": "f2", "seconds": 2.0},
    {"kind": "watch", "at": 20, "user": "u3", "film": "f2", "seconds": 1e9, "id": "x"},
]
SORTED = [EVENTS[1], EVENTS[2], EVENTS[3], EVENTS[0]]


def table() -> pa.Table:
    columns = {
        name: [event.get(name) for event in EVENTS] for name in dict.fromkeys(name for e in EVENTS for name in e)
    }
    return pa.table(columns)


def write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(event) for event in EVENTS))
    elif path.suffix == ".json":
        path.write_text("\n " + json.dumps(EVENTS, indent=1))
    elif path.suffix == ".parquet":
        pq.write_table(table(), path)
    elif path.suffix == ".arrow":
        pyarrow.feather.write_feather(table(), path)
    else:
        path.write_text(
            "\ufeffkind,at,user,film,seconds,live,place,title,genres,id\n"
            'watch,30,ü,"f,1",1.5,true,3,,,\n'
            'film,10,,"f,1",,,,"The ""One""\nand only",a|b,\n'
            "watch,1970-01-01T00:00:00.020Z,u2,f2,2,,,,,\n"
            "watch,20,u3,f2,1e9,,,,,x\n"
        )
    return path


def stored(log: EventLog) -> list[dict[str, Any]]:
    rows = [row for batch in log.scan() for row in batch.table.to_pylist()]
    assert [row["offset"] for row in rows] == list(range(len(rows)))
    assert all(row["received"] == row["at"] for row in rows)
    given = [{name.split(".")[-1]: value for name, value in row.items() if value is not None} for row in rows]
    return [{name: value for name, value in row.items() if name not in ("offset", "received")} for row in given]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow", "csv"])
def test_every_format_gives_the_same_history_sorted_by_time_exactly_once(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"history.{ending}")
    log = MemoryLog(SCHEMAS)
    ticks: list[tuple[int, int]] = []
    imported = import_file(log, path, tick=lambda done, total: ticks.append((done, total)))
    assert (imported.accepted, imported.refusals, imported.resumed_at) == (4, [], 0)
    assert ticks == [(4, 4)]
    assert stored(log) == SORTED
    again = import_file(log, path)
    assert (again.accepted, again.duplicates, again.resumed_at) == (0, 0, 4)
    assert log.position == 4


def test_a_table_is_imported_like_a_file() -> None:
    log = MemoryLog(SCHEMAS)
    assert import_table(log, table(), "history").accepted == 4
    assert import_table(log, table(), "history").resumed_at == 4
    assert stored(log) == SORTED


def test_a_file_of_one_kind_needs_no_such_column_and_ids_may_be_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [7], "film": [8], "at": [1], "seconds": [2]}), tmp_path / "watch.parquet")
    (tmp_path / "watch.csv").write_text("user,film,at,seconds\n7,8,1,2\n")
    log = MemoryLog(SCHEMAS)
    for ending in ("parquet", "csv"):
        assert import_file(log, tmp_path / f"watch.{ending}", kind="watch").accepted == 1
    assert stored(log) == [{"kind": "watch", "user": "7", "film": "8", "at": 1, "seconds": 2.0}] * 2


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_files_columns_may_have_other_names_and_others_are_left_out(tmp_path: Path, ending: str) -> None:
    rows = [{"who": "u", "film": "f", "when": n, "watched": 1.5, "mood": "good"} for n in (2, 1)]
    path = tmp_path / f"watch.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("who,film,when,watched,mood\nu,f,2,1.5,good\nu,f,1,1.5,good\n")
    log = MemoryLog(SCHEMAS)
    columns = {"user": "who", "at": "when", "seconds": "watched"}
    assert import_file(log, path, kind="watch", columns=columns).refusals == []
    assert stored(log) == [{"kind": "watch", "user": "u", "film": "f", "at": n, "seconds": 1.5} for n in (1, 2)]
    with pytest.raises(LogError, match=r"key or field 'usr'; did you mean 'user'\?"):
        import_file(MemoryLog(SCHEMAS), path, kind="watch", columns={"usr": "who"})


class KilledError(Exception):
    """In place of the process's end."""


class Dying(SqliteLog):
    """A log whose process ends right after the transaction of a given block."""

    blocks = 0

    def append_imported(self, *arguments: Any) -> Receipt:
        receipt = super().append_imported(*arguments)
        Dying.blocks -= 1
        if Dying.blocks == 0:
            raise KilledError
        return receipt


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_an_interrupted_import_goes_on_where_it_stopped(
    tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BLOCK", 3)
    path = tmp_path / "history.jsonl"
    events = [{"kind": "watch", "at": 50 - n, "user": "u", "film": "f", "seconds": n} for n in range(10)]
    path.write_text("\n".join(json.dumps(event) for event in events))
    Dying.blocks = blocks
    dying = Dying(tmp_path / "log.db", SCHEMAS)
    with pytest.raises(KilledError):
        import_file(dying, path)
    dying.close()
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    imported = import_file(log, path)
    assert (imported.accepted, imported.resumed_at) == (10 - min(10, 3 * blocks), min(10, 3 * blocks))
    assert [row["at"] for row in stored(log)] == list(range(41, 51))
    log.close()


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "history.jsonl")
    log = MemoryLog(SCHEMAS)
    import_file(log, path)
    path.write_text(path.read_text() + "\n" + json.dumps(EVENTS[0]))
    with pytest.raises(LogError, match=r"4 events of it are in the log, and it .* has changed since; to add"):
        import_file(log, path)
    assert log.position == 4


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_refusals_name_the_line_of_the_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"history.{ending}"
    if ending == "jsonl":
        good = '{"kind":"watch","at":%d,"user":"u","film":"f","seconds":1}'
        path.write_text("\n".join([good % 3, "", "{", good % -1, good % 1]))
        expected = [(3, "no JSON"), (4, "absurd time")]
    else:
        path.write_text(
            "kind,at,user,film,seconds\nwatch,3,u,f,1\nwatch,3\nwatch,4,,f,x\nwatch,1,u,f,1\nwatch,x,u,f,1\n"
        )
        expected = [
            (3, "has 2 values, the header names 5"),
            (4, "field 'seconds' must be a number, found 'x'"),
            (6, "'at'"),
        ]
    imported = import_file(MemoryLog(SCHEMAS), path)
    assert (imported.accepted, imported.refused) == (2, len(expected))
    for refusal, (line, reason) in zip(imported.refusals, expected, strict=True):
        assert refusal.line == line
        assert reason in refusal.reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "cannot be read: No such file"),
        ("history.txt", b"", r"the ending '.txt' is unknown"),
        ("history.parquet", b"PAR1 nonsense", "cannot be read as .parquet"),
        ("history.arrow", b"nonsense", "cannot be read as .arrow"),
        ("history.csv", b"", "cannot be read as .csv"),
        ("history.csv", b"kind,at,user,film,second\nwatch,1,u,f,1\n", "key or field 'second'; did you mean 'seconds'?"),
        ("latin.csv", b"kind,at,user\nuser,1,\xff\xfe\n", "cannot be read as .csv"),
    ],
)
def test_files_that_cannot_be_read_are_refused_plainly(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    log = MemoryLog(SCHEMAS)
    with pytest.raises(LogError, match=message.replace("?", r"\?")):
        import_file(log, tmp_path / name)
    assert log.position == 0


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json"])
def test_an_empty_file_is_a_complete_import(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert import_file(MemoryLog(SCHEMAS), tmp_path / name).accepted == 0
