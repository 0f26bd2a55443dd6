"""What is answered, and whether it is what was learned."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import click

from shortlist.cli.console import open_workplace, print_json, say, takes_json, takes_project
from shortlist.terminal import print_table


@click.command()
@takes_project
@click.option("--host", help="Where to listen (default: the setting `host`).")
@click.option("--port", type=click.IntRange(0, 65_535), help="0 takes a free one (default: the setting `port`).")
def serve(path: Path, host: str | None, port: int | None) -> int:
    """Answer over HTTP until interrupted. The documentation is at /docs."""
    workplace = open_workplace(path)
    from shortlist.serving.running import serve as run

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    settings = workplace.settings
    settings = replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    run(workplace.project, settings, lambda url: click.echo(url))
    return 0


@click.command()
@takes_project
@takes_json
def audit(path: Path, as_json: bool) -> int:
    """Replay the log and compare every logged feature vector, bit by bit. Exit code 1 unless all agree."""
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


COMMANDS = (serve, audit)
