"""Kill -9 at any moment: nothing that was acknowledged is lost, and what is there is whole."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shortlist.events.importing import import_file
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import SqliteLog

ROOT = Path(__file__).parents[1]
USER = Entity("user")
WATCH = EventSchema("watch", (USER,), {"seconds": float})
SCHEMAS = [USER.schema, WATCH]

APPEND = """
import sys
from shortlist.events import sqlite
from tests.test_kill import SCHEMAS
sqlite.SEAL_EVENTS = 500  # seal all the time: the kill must find that half done too
log = sqlite.SqliteLog(sys.argv[1], SCHEMAS)
first = int(sys.argv[2])
while True:
    events = [{"kind": "watch", "at": n, "user": "u", "seconds": n, "id": str(n)} for n in range(first, first + 20)]
    log.append(events, received=0)
    first += 20
    print(first, flush=True)
"""

IMPORT = """
import sys
from pathlib import Path
from shortlist.events import importing, sqlite
from tests.test_kill import SCHEMAS
importing.BLOCK = 50
log = sqlite.SqliteLog(sys.argv[1], SCHEMAS)
print("ready", flush=True)
importing.import_file(log, Path(sys.argv[2]), tick=lambda done, total: print(done, flush=True))
"""


def killed(program: str, *arguments: str, after_lines: int, delay: float) -> list[str]:
    """Run a program, kill it `delay` seconds after it has printed some lines; what it had printed until it died."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(after_lines)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    return [*lines, *(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))]


def test_what_was_acknowledged_survives_being_killed_again_and_again(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "log.db"
    acknowledged = 0
    for _ in range(6):
        lines = killed(APPEND, str(path), str(acknowledged), after_lines=30, delay=draw.uniform(0, 0.2))
        acknowledged = int(lines[-1])
        reader = SqliteLog(path, SCHEMAS, read_only=True)
        stored = [value for batch in reader.scan() for value in batch.numbers("watch.seconds").tolist()]
        assert stored == list(range(len(stored)))
        assert acknowledged <= len(stored) <= acknowledged + 20
        log = SqliteLog(path, SCHEMAS)
        again = [{"kind": "watch", "at": n, "user": "u", "seconds": n, "id": str(n)} for n in range(len(stored))]
        assert log.append(again, received=0).duplicates == len(stored)
        log.close()


@pytest.mark.parametrize("seed", range(3))
def test_an_import_that_is_killed_goes_on_exactly_once(tmp_path: Path, seed: int) -> None:
    history = tmp_path / "history.jsonl"
    count = 20_000
    lines = [json.dumps({"kind": "watch", "at": n, "user": "u", "seconds": n}) for n in range(count)]
    history.write_text("\n".join(lines))
    path = tmp_path / "log.db"
    draw = random.Random(seed)
    told = 0
    for _ in range(2):
        said = killed(IMPORT, str(path), str(history), after_lines=2, delay=draw.uniform(0, 0.1))
        told = max([told, *(int(line) for line in said if line.strip().isdigit())])
    log = SqliteLog(path, SCHEMAS)
    assert log.position >= told
    imported = import_file(log, history)
    assert imported.accepted + imported.resumed_at == count
    assert [value for batch in log.scan() for value in batch.numbers("watch.seconds").tolist()] == list(range(count))
    log.close()
