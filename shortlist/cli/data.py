"""What goes into the log and what is in it."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shortlist.cli.console import open_workplace, print_json, say, takes_json, takes_project
from shortlist.terminal import Report, print_table, progress

if TYPE_CHECKING:
    from shortlist.events.importing import Imported
    from shortlist.events.report import KindReport


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kind", default="", help="The kind of every event, for files without a column `kind`.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Where a CSV calls something otherwise: --column user=userId --column at=timestamp.",
)
@takes_project
@takes_json
def ingest(files: tuple[Path, ...], kind: str, columns: tuple[str, ...], path: Path, as_json: bool) -> int:
    """Add history from JSON lines, CSV, Parquet or Arrow files.

    Each file's events are added once: a file that was interrupted goes on where it stopped. Exit code 1 when events
    were refused.
    """
    workplace = open_workplace(path)
    renamed = dict(read_mapping(given) for given in columns)
    from shortlist.events.importing import import_file

    log = workplace.log(read_only=False)
    try:
        with progress(quiet=as_json) as report:
            done = [import_file(log, file, kind, partial(tick, report, file.name), columns=renamed) for file in files]
    finally:
        log.close()
    if as_json:
        print_json([asdict(imported) for imported in done])
    else:
        show_imported(done)
    return 1 if any(imported.refused for imported in done) else 0


def tick(report: Report, step: str, done: int, of: int) -> None:
    """Progress in events as a share."""
    report(step, done / max(of, 1))


def read_mapping(given: str) -> tuple[str, str]:
    """`"at=timestamp"` as (name, column)."""
    name, equals, column = given.partition("=")
    if not (name and equals and column):
        raise click.UsageError(f"--column {given!r}: expected NAME=COLUMN, such as user=userId")
    return name, column


def show_imported(done: list[Imported]) -> None:
    """What became of each file, and why events were refused."""
    rows = [
        (Path(i.source).name, f"{i.accepted:,}", f"{i.duplicates:,}", f"{i.refused:,}", f"{i.resumed_at:,}")
        for i in done
    ]
    print_table(("file", "accepted", "known already", "refused", "done before"), rows)
    for imported in done:
        for refusal in imported.refusals[:10]:
            say(f"{imported.source}:{refusal.line}: {refusal.reason}")
        if imported.refused > 10:
            say(f"... and {imported.refused - 10:,} more of {Path(imported.source).name}")


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@takes_project
@takes_json
@click.option("--seed", default=0, show_default=True, help="For the negatives that are drawn.")
def dataset(out: Path, path: Path, as_json: bool, seed: int) -> int:
    """Write the rankers' training set to a Parquet file.

    One row per request and item: its gain, and every feature as it was at that moment.
    """
    workplace = open_workplace(path)
    from shortlist.training.dataset import write_dataset

    with progress(quiet=as_json) as report:
        rows, columns = write_dataset(workplace.project, workplace.log(), out, seed, report)
    if as_json:
        print_json({"file": str(out), "rows": rows, "columns": columns})
    else:
        click.echo(f"{out}: {rows:,} rows, {len(columns)} columns")
    return 0


@click.group()
def log() -> None:
    """Look at the event log."""


@log.command()
@takes_project
@takes_json
def info(path: Path, as_json: bool) -> int:
    """How much, of what, how complete, how fresh; and how the labels are balanced."""
    workplace = open_workplace(path)
    from shortlist.events.report import data_report

    project = workplace.project
    report = data_report(workplace.log(), project.labels, project.user.name, project.item.name)
    if as_json:
        print_json(
            {
                **asdict(report),
                "labels": {**asdict(report.labels), "gains": {str(g): n for g, n in report.labels.gains.items()}},
            }
        )
        return 0
    counted = ", ".join(f"{count:,} {name}s" for name, count in report.entities.items())
    click.echo(f"{report.position:,} events about {counted}\n")
    rows = [
        (kind.kind, present(kind), f"{kind.events:,}", day(kind.first_at), day(kind.last_at)) for kind in report.kinds
    ]
    print_table(("kind", "fields not always present", "events", "first", "last"), rows, text=2)
    labels = report.labels
    shares = ", ".join(f"{count:,} of gain {gain:g}" for gain, count in labels.gains.items()) or "none yet"
    meaning = (
        "shown and acted on or not"
        if labels.has_impressions
        else "observed positives only: nobody logged what was shown"
    )
    click.echo(f"\nlabels ({meaning}): {shares}; {labels.left_out:,} not decided yet")
    return 0


def present(kind: KindReport) -> str:
    """Which fields some events lack, with the share that has them."""
    return ", ".join(f"{name} {share:.0%}" for name, share in kind.coverage.items() if kind.events and share < 1)


def day(at: int | None) -> str:
    """A moment as a date for people."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d") if at is not None else "-"


@log.command()
@click.option("-n", "count", default=10, show_default=True, type=click.IntRange(1), help="How many events.")
@takes_project
def tail(count: int, path: Path) -> int:
    """The last events, one JSON object a line."""
    import json

    workplace = open_workplace(path)
    events = workplace.log()
    for batch in events.scan(max(0, events.position - count)):
        for event in batch.table.to_pylist():
            click.echo(json.dumps(flat(event), ensure_ascii=False))
    return 0


def flat(event: dict[str, Any]) -> dict[str, Any]:
    """An event of the wide table as it was sent: its own fields under their own names."""
    prefix = f"{event['kind']}."
    return {name.removeprefix(prefix): value for name, value in event.items() if value is not None}


@log.command()
@takes_project
@takes_json
def verify(path: Path, as_json: bool) -> int:
    """Read every event back and check every checksum. Exit code 1 where something is damaged."""
    workplace = open_workplace(path)
    begun = time.perf_counter()
    events = workplace.log()
    total = events.position
    with progress(quiet=as_json) as report:
        for batch in events.scan():
            report("reading", batch.stop / max(total, 1))
    seconds = time.perf_counter() - begun
    if as_json:
        print_json({"ok": True, "events": total, "seconds": round(seconds, 3)})
    else:
        click.echo(
            f"{click.style('ok', fg='green')}: {total:,} events read back in {seconds:.1f} s, every checksum holds"
        )
    return 0


COMMANDS = (ingest, log, dataset)
