"""What is learned, how good it is, and which of it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shortlist.cli.console import open_workplace, print_json, say, takes_json, takes_project
from shortlist.report import as_document, calibration_rows, judged_on, loss_rows, notes, quality_rows
from shortlist.terminal import print_table, progress

if TYPE_CHECKING:
    from shortlist.loop import Turn
    from shortlist.training.releases import Release

SEED = click.option("--seed", default=0, show_default=True, help="The same log and seed give the same release.")
REASON = click.option("--reason", default="by hand", show_default=True, help="Kept in the history of champions.")


@click.command()
@takes_project
@SEED
@click.option("--force", is_flag=True, help="Publish what was trained though popularity is better; it is recorded.")
@takes_json
def train(path: Path, seed: int, force: bool, as_json: bool) -> int:
    """Learn from the log, measure on its last fifth, publish.

    The first release serves at once; a later one when it is promoted. Where what was trained is worse than popularity,
    the release serves popular items and says so.
    """
    workplace = open_workplace(path)
    from shortlist.loop import learn

    with progress(quiet=as_json) as report:
        turned = learn(workplace.project, workplace.settings, seed, report, force)
    return finish(turned, as_json)


@click.command()
@takes_project
@SEED
@takes_json
def turn(path: Path, seed: int, as_json: bool) -> int:
    """One turn of the loop: train, check, promote. Exit code 1 when a check fails and nothing changes."""
    workplace = open_workplace(path)
    from shortlist.loop import turn as take_turn

    with progress(quiet=as_json) as report:
        turned = take_turn(workplace.project, workplace.settings, seed, report)
    return finish(turned, as_json) if turned.promoted else max(1, finish(turned, as_json))


def show_report(release: Release) -> None:
    """Quality and losses as two tables, and a third one where the ranker predicts probabilities."""
    details = as_document(release)
    click.echo(f"release {release.version}: {details['users']:,} users, {details['requests']:,} held-out requests")
    if which := judged_on(release):
        click.echo(which)
    click.echo()
    print_table(*quality_rows(release))
    click.echo()
    print_table(*loss_rows(release))
    calibrated = calibration_rows(release)
    if calibrated[1]:
        click.echo()
        print_table(*calibrated)
    for note in notes(release):
        say(note)


def finish(turned: Turn, as_json: bool) -> int:
    """Show what a training came to."""
    release = turned.release
    if as_json:
        print_json({**as_document(release), "failed": list(turned.failed), "champion": turned.champion})
        return 0
    show_report(release)
    for check in turned.failed:
        say(f"{click.style('check failed', fg='red')}: {check}")
    if turned.promoted:
        say(f"{release.version} serves" + (", because there is nothing better yet" if turned.failed else ""))
    else:
        say(f"{release.version} is published; {turned.champion} serves. shortlist promote {release.version}")
    return 0


@click.command()
@click.argument("version", default="champion")
@takes_project
@takes_json
def evaluate(version: str, path: Path, as_json: bool) -> int:
    """Show how good a release is, and where the rest was lost.

    VERSION is a version, champion, previous or latest. Exit code 1 when it does not pass the checks.
    """
    workplace = open_workplace(path)
    registry = workplace.registry()
    release = registry.fetch(version)
    failed = registry.failed_checks(release.manifest)
    if as_json:
        print_json({**as_document(release), "failed": failed})
    else:
        show_report(release)
        for check in failed:
            say(f"{click.style('check failed', fg='red')}: {check}")
    return 1 if failed else 0


@click.command()
@click.argument("version", default="latest")
@REASON
@click.option("--force", is_flag=True, help="Although checks fail; they are kept in the history.")
@takes_project
@takes_json
def promote(version: str, reason: str, force: bool, path: Path, as_json: bool) -> int:
    """Make a release the champion; a running service swaps to it.

    Refused when a check fails.
    """
    pointer = open_workplace(path).registry().promote(version, reason, force)
    say_champion(pointer.champion, pointer.previous, as_json)
    return 0


@click.command()
@REASON
@takes_project
@takes_json
def rollback(reason: str, path: Path, as_json: bool) -> int:
    """Make the previous champion the champion again."""
    pointer = open_workplace(path).registry().rollback(reason)
    say_champion(pointer.champion, pointer.previous, as_json)
    return 0


def say_champion(champion: str | None, previous: str | None, as_json: bool) -> None:
    """Who serves now."""
    if as_json:
        print_json({"champion": champion, "previous": previous})
    else:
        click.echo(f"{champion} is champion; {previous or 'nothing'} was before")


@click.command()
@takes_project
@takes_json
def releases(path: Path, as_json: bool) -> int:
    """List the published releases, newest first."""
    registry = open_workplace(path).registry()
    pointer = registry.pointer()
    found = [registry.fetch(version) for version in registry.versions()]
    if as_json:
        print_json([{"version": r.version, "metrics": dict(r.manifest.metrics)} for r in found])
        return 0
    roles = {pointer.champion: "champion", pointer.previous: "previous"}
    rows = [
        (r.version, roles.get(r.version, ""), f"{r.manifest.log_position:,}", figure(r.manifest.metrics.get("ndcg@10")))
        for r in found
    ]
    print_table(("release", "role", "events", "NDCG@10"), rows, text=2)
    return 0


def figure(value: float | None) -> str:
    """A metric for people."""
    return "-" if value is None else f"{value:.4f}"


COMMANDS = (train, evaluate, turn, promote, rollback, releases)
