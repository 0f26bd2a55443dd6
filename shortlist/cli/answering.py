"""What is answered, and whether it is what was learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shortlist.child import ask
from shortlist.cli.console import Workplace, open_workplace, print_json, say, takes_json, takes_project
from shortlist.cli.explaining import actions_of, chances, describe, steps
from shortlist.terminal import print_table, progress

if TYPE_CHECKING:
    from shortlist.serving.batch import Format


@click.command()
@takes_project
@click.option("--host", help="Where to listen (default: the setting `host`).")
@click.option("--port", type=click.IntRange(0, 65_535), help="0 takes a free one (default: the setting `port`).")
def serve(path: Path, host: str | None, port: int | None) -> int:
    """Answer over HTTP until interrupted. See /docs there."""
    workplace = open_workplace(path)
    from shortlist.serving.running import serve as run

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    settings = workplace.settings
    settings = replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    run(workplace.project, settings, lambda url: click.echo(url))
    return 0


@click.command()
@click.argument("user", required=False)
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@click.option("--explain", is_flag=True, help="Say where every item comes from.")
@click.option("--all", "everybody", is_flag=True, help="Everybody whom the log names, into the folder --out.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The folder of the slates of --all.")
@click.option(
    "--format", "form", type=click.Choice(["parquet", "jsonl"]), help="Of the slates of --all (default: parquet)."
)
@takes_project
@takes_json
def recommend(
    user: str | None,
    k: int,
    explain: bool,
    everybody: bool,
    out: Path | None,
    form: Format | None,
    path: Path,
    as_json: bool,
) -> int:
    """What the champion shows to USER now. Nothing is logged.

    With --all it writes the slates of everybody, in parts: a run that was stopped goes on where it was, as of the
    moment and log position at which it began, as long as release, rules, -k and format are the same. Exit code 1 when
    a stage failed for somebody.
    """
    if everybody:
        if user is not None or explain or out is None:
            raise click.UsageError("--all needs --out DIR, and goes with neither USER nor --explain")
        return recommend_all(open_workplace(path), k, out, form or "parquet", as_json)
    if user is None or out is not None or form is not None:
        raise click.UsageError("name a USER, or take everybody: --all --out DIR [--format jsonl]")
    return recommend_one(open_workplace(path), user, k, explain, as_json)


def recommend_one(workplace: Workplace, user: str, k: int, explain: bool, as_json: bool) -> int:
    """Ask the service, and show its answer."""
    question = {"user": user, "k": k, "explain": explain, "log": False}
    with service(workplace) as url:
        answer = ask(f"{url}/recommend", question)
    if as_json:
        print_json(answer)
        return 0
    from shortlist.titles import titles

    named = titles(workplace.log(), workplace.project.item)
    rows = [[f"{place}", shown["item"], named.get(shown["item"], "")] for place, shown in enumerate(answer["items"], 1)]
    columns = ["", "item", "title"]
    if explain:
        actions = actions_of(answer["explanation"])
        columns += ["why", *(f"p({action})" for action in actions)]
        for row, made in zip(rows, answer["explanation"]["items"], strict=True):
            row += [describe(made["columns"]), *chances(made, actions)]
    for row, shown in zip(rows, answer["items"], strict=True):
        row.append("-" if shown["score"] is None else f"{shown['score']:.4f}")
    print_table([*columns, "score"], rows, text=4 if explain else 3)
    if explain:
        click.echo()
        print_table(("step", "what it did"), steps(answer), text=2)
    if answer["degraded"]:
        say(f"degraded: {', '.join(answer['degraded'])}")
    return 0


def recommend_all(workplace: Workplace, k: int, out: Path, form: Format, as_json: bool) -> int:
    """Write everybody's slates, and say what came of it."""
    from shortlist.serving.batch import PART_USERS, Batch, present, resumed_position, write_batch

    project, log, registry = workplace.project, workplace.log(), workplace.registry()
    release = registry.fetch("champion", workplace.features().fingerprint)
    with progress(quiet=as_json) as report:
        report("read the log", 0.0)
        now = time.time_ns() // 1_000_000
        rules = ", ".join(map(repr, project.slate))
        batch = Batch(project.name, rules, release.version, log.position, 0, k, form, PART_USERS, now)
        stop = resumed_position(out, batch)
        table, pipeline = present(project, log, workplace.settings.place("state"), release, stop)
        report("read the log", 1.0)
        users = table.entities[project.user.name].ids
        batch = replace(batch, log_position=table.position, users=len(users))
        written = write_batch(out, batch, pipeline, users, report, say)
    done = written.batch
    speed = written.computed / written.seconds if written.seconds > 0 else 0.0
    if as_json:
        figures = {"seconds": round(written.seconds, 3), "users_per_second": round(speed, 1)}
        print_json({"folder": str(out), "parts": done.parts, **asdict(written), **figures})
    else:
        if written.resumed_parts:
            say(f"{written.resumed_parts} of {done.parts} parts were there already")
        click.echo(
            f"{out}: {done.users:,} users in {done.parts} parts; {written.computed:,} computed in "
            f"{written.seconds:.1f} s, {speed:,.0f} a second"
        )
    for stage, count in written.degraded.items():
        say(f"{click.style('failed', fg='red')}: {stage}, for {count:,} users; their slates are without it")
    return 1 if written.degraded else 0


@contextmanager
def service(workplace: Workplace) -> Iterator[str]:
    """The URL of the project's service: the running one, or one that runs as long as the block."""
    settings, registry = workplace.settings, workplace.registry()
    running = f"http://{settings.host}:{settings.port}"
    try:
        ours = ask(f"{running}/health", seconds=1.0)["release"] in registry.versions()
    except (OSError, ValueError, KeyError, TypeError):
        ours = False  # nobody listens there, or somebody else: then one of our own
    if ours:  # outside the try: what the caller's block raises is not about the service
        yield running
        return
    registry.resolve("champion")
    from shortlist.serving.running import Running

    with Running(workplace.project, replace(settings, host="127.0.0.1", port=0)) as own:
        own.wait_ready()
        yield own.url


@click.command()
@takes_project
@takes_json
def audit(path: Path, as_json: bool) -> int:
    """Compare every logged feature vector with a replay of the log.

    Bit by bit; exit code 1 unless all agree.
    """
    workplace = open_workplace(path)
    from shortlist.monitoring.skew import audit as compare

    project = workplace.project
    report = compare(workplace.features(), workplace.log(), project.user.name, project.item.name)
    if as_json:
        print_json(report.to_dict())
    else:
        rows = [
            (c.feature, f"{c.compared:,}", f"{c.equal:,}", f"{c.different:,}")
            for c in sorted(report.comparisons, key=lambda c: -c.different)
        ]
        print_table(("feature", "compared", "equal", "different"), rows)
        bound = f"mismatches below {report.upper_bound:.2g} with 95 % confidence"
        say(f"{report.vectors:,} vectors, {report.compared:,} values, {report.different:,} differ; {bound}")
        if not report.vectors:
            say("no vector was logged yet: the setting vector_sample says for which share of requests they are")
    return 0 if report.passed else 1


COMMANDS = (serve, recommend, audit)
