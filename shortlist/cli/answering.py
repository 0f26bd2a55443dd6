"""What is answered, and whether it is what was learned."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from shortlist.child import ask
from shortlist.cli.console import Workplace, open_workplace, print_json, say, takes_json, takes_project
from shortlist.terminal import print_table


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
@click.argument("user")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@click.option("--explain", is_flag=True, help="Say where every item comes from.")
@takes_project
@takes_json
def recommend(user: str, k: int, explain: bool, path: Path, as_json: bool) -> int:
    """What the champion shows to USER now. Nothing is logged."""
    workplace = open_workplace(path)
    question = {"user": user, "k": k, "explain": explain, "log": False}
    with service(workplace) as url:
        answer = ask(f"{url}/recommend", question)
    if as_json:
        print_json(answer)
        return 0
    from shortlist.titles import titles

    named = titles(workplace.log(), workplace.project.item)
    made_of = {row["item"]: row["columns"] for row in (answer.get("explanation") or {}).get("items", [])}
    rows = [
        (
            f"{place}",
            item,
            named.get(item, ""),
            describe(made_of.get(item, {})),
            "-" if score is None else f"{score:.4f}",
        )
        for place, (item, score) in enumerate(((shown["item"], shown["score"]) for shown in answer["items"]), start=1)
    ]
    print_table(("", "item", "title", "why" if explain else "", "score"), rows, text=4)
    if answer["degraded"]:
        say(f"degraded: {', '.join(answer['degraded'])}")
    return 0


def describe(columns: dict[str, float | None]) -> str:
    """An item's columns in one line."""
    return " ".join(
        f"{name}={value:.3g}"
        for name, value in columns.items()
        if value is not None and name not in ("score", "log_position")
    )


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
