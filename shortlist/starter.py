"""The project that `shortlist init` makes: a copy of the starter template, with its events in the log."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from shortlist.events.log import Progress
from shortlist.events.sqlite import SqliteLog
from shortlist.project import load_project
from shortlist.settings import load_settings

TEMPLATES = Path(__file__).parent / "templates"
HOUR_MS = 3_600_000


def make(folder: Path) -> int:
    """Write the project and fill its log; the number of events. The events end an hour ago, so windows hold some."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_template("starter", folder)
    events = move_to_now(folder / "events.jsonl", int(time.time() * 1000) - HOUR_MS)
    settings = load_settings(folder)
    settings.make_folders()
    log = SqliteLog(settings.place("log"), load_project(folder).schemas)
    try:
        receipt = log.append_imported(events, Progress("events.jsonl", "", events.count(b"\n")))
    finally:
        log.close()
    return receipt.accepted


def copy_template(name: str, folder: Path) -> None:
    """Copy the files of one template."""
    for file in sorted((TEMPLATES / name).iterdir()):
        if file.is_file() and file.name != "__init__.py":
            shutil.copyfile(file, folder / file.name)


def move_to_now(file: Path, last: int) -> bytes:
    """Rewrite the events so that the last one happens at `last`, ms UTC; their new text."""
    events = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    shift = last - max(event["at"] for event in events)
    moved = [json.dumps({**event, "at": event["at"] + shift}, ensure_ascii=False) for event in events]
    text = "".join(f"{line}\n" for line in moved).encode()
    file.write_bytes(text)
    return text
