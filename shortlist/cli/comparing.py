"""What is worth its price, and which settings are best: measured on the project's own past."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shortlist.cli.console import open_workplace, print_json, say, takes_json, takes_project
from shortlist.events.labels import Labels
from shortlist.report import plain, with_interval
from shortlist.terminal import print_table, progress

if TYPE_CHECKING:
    from shortlist.project import Project
    from shortlist.training.comparing.tradeoffs import Contribution, Method, TradeOffs
    from shortlist.training.comparing.tuning import Tuned
    from shortlist.training.metrics import Interval

UNITS = ("B", "kB", "MB", "GB")


@click.command()
@takes_project
@click.option("--seed", default=0, show_default=True, help="The same log and seed train the same models.")
@takes_json
def report(path: Path, seed: int, as_json: bool) -> int:
    """Train every source and ranker on one split and weigh them.

    Accuracy on the held-out fifth of the log, latency, size, training time, what can be shown of why, and what the
    numbers recommend. Nothing is published.
    """
    workplace = open_workplace(path)
    from shortlist.training.comparing.advice import recommendations
    from shortlist.training.comparing.tradeoffs import trade_offs

    with progress(quiet=as_json) as watch:
        weighed = trade_offs(workplace.project, workplace.log(), seed, watch)
    deadline_ms = workplace.settings.deadline_ms or workplace.project.constraints.deadline_ms
    advice = recommendations(weighed, deadline_ms)
    if as_json:
        print_json({**weighed.to_dict(), "recommendation": advice})
        return 0
    show(weighed, workplace.project)
    click.echo("\nRecommendation")
    for sentence in advice:
        click.echo(f"  - {sentence}")
    for finding in weighed.findings:
        say(finding)
    return 0


def show(weighed: TradeOffs, project: Project) -> None:
    """The table, what each source brings, and what can be shown of why."""
    click.echo(f"{weighed.users:,} users, {weighed.requests:,} held-out requests; 95 % intervals by user")
    if isinstance(project.labels, Labels):
        click.echo("NDCG@10: slates shown (if any was acted on), ordered again; the rest: requests replayed")
    click.echo()
    print_table(("method", "NDCG@10", "Recall@10", "ms per 500", "size", "trained in"), map(row, weighed.methods))
    click.echo()
    parts = {part.source: part for part in weighed.contributions}
    rows = [
        (method.name.replace("_", " "), overlap(part), *depths(method.quality), *brought(part))
        for method, part in ((method, parts.get(method.name)) for method in weighed.methods)
        if method.role != "ranker"
    ]
    print_table(("retrieval", "found too by", "R@100", "R@500", "without it", "only it finds", "adds"), rows, text=2)
    click.echo("\nWhat can be shown of why")
    for method in weighed.methods:
        if method.reason is not None:
            click.echo(f"  {method.name.replace('_', ' ')}: {explained(method)}")


def row(method: Method) -> tuple[str, ...]:
    """A method's line; a dash where it has no such figure."""
    quality = method.quality
    slate = [with_interval(quality[name].to_dict()) if name in quality else "-" for name in ("ndcg@10", "recall@10")]
    taken = f"{method.latency_ms:.2f}" if math.isfinite(method.latency_ms) else "-"
    return (method.name.replace("_", " "), *slate, taken, size(method.bytes), f"{method.seconds:.1f} s")


def depths(quality: Mapping[str, Interval]) -> tuple[str, ...]:
    """How much of what was wanted is retrieved, by depth."""
    return tuple(
        plain(quality[name].to_dict()["value"]) if name in quality else "-" for name in ("recall@100", "recall@500")
    )


def brought(part: Contribution | None) -> tuple[str, ...]:
    """What a source brings; dashes for the whole."""
    if part is None:
        return ("-",) * 3
    return (depths(part.without)[-1], f"{part.alone:.1%}", "yes" if part.is_useful else "nothing")


def overlap(part: Contribution | None) -> str:
    """The other source that finds most of what this one does, and how much; a dash where nothing is found twice."""
    if part is None:
        return "-"
    other = max(part.overlap, key=lambda name: part.overlap[name], default="")
    return f"{other.replace('_', ' ')} {part.overlap[other]:.0%}" if other and part.overlap[other] > 0 else "-"


def explained(method: Method) -> str:
    """What a method shows, and for rankers what moves its scores most here."""
    assert method.reason is not None
    words = method.reason.words
    if method.attribution is None:
        return words
    moved = ", ".join(f"{name} {share:.0%}" for name, share in method.attribution.drivers)
    exact = "contributions add up to the score" if method.attribution.exact else "contributions do not add up"
    return f"{words}; {exact}; moved most by {moved}" if moved else f"{words}; {exact}"


def size(count: int) -> str:
    """Bytes for people."""
    if count == 0:
        return "-"
    power = min(int(math.log(count, 1000)), len(UNITS) - 1)
    return f"{count / 1000**power:.{0 if power == 0 else 1}f} {UNITS[power]}"


@click.command()
@click.argument("parts", nargs=-1)
@takes_project
@click.option(
    "--trials", default=20, show_default=True, type=click.IntRange(1), help="Of each part, earlier runs included."
)
@click.option(
    "--minutes", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True), help="No trial begins later."
)
@click.option("--anew", is_flag=True, help="At the log's end, though there are trials at an earlier one.")
@click.option("--seed", default=0, show_default=True, help="Of the models and of the trials.")
@takes_json
def tune(parts: tuple[str, ...], path: Path, trials: int, minutes: float, anew: bool, seed: int, as_json: bool) -> int:
    """Try settings of sources and rankers.

    PARTS are names, all that can be tuned by default. Each is tried with other settings on the past before the test
    slice; a run that was stopped goes on where it was. The best settings are printed for the project file, and held
    against the declared ones on the test slice, once, when all trials are done.
    """
    workplace = open_workplace(path)
    from shortlist.training.comparing.tuning import Budget
    from shortlist.training.comparing.tuning import tune as search

    settings = workplace.settings
    database = settings.place("log").with_name("tuning.db")
    with progress(quiet=as_json) as watch:
        budget = Budget(trials, 60 * minutes)
        tuned = search(workplace.project, workplace.log(), database, budget, seed, watch, parts, anew)
    if as_json:
        print_json(tuned.to_dict())
    else:
        show_tuned(tuned)
    return 0


def show_tuned(tuned: Tuned) -> None:
    """What was tried, the lines for the project file, and what the test slice says."""
    if tuned.note:
        say(tuned.note)
    rows = [
        (
            best.part.replace("_", " "),
            best.metric,
            f"{best.trials}",
            plain(best.declared),
            plain(best.best),
            "yes" if best.settings else "no",
        )
        for best in tuned.parts
    ]
    print_table(("part", "judged by", "trials", "as declared", "best", "better beyond chance"), rows, text=2)
    for best in tuned.parts:
        if best.problem:
            say(f"{best.part}: {best.problem}")
    lines = [best.line for best in tuned.parts if best.line]
    click.echo(
        "\n" + "\n".join(lines) if lines else "\nNo other settings are better than those declared, beyond chance."
    )
    if not tuned.is_finished:
        say("the time is up before all trials were made; run it again to go on. Until then the test slice is not used")
    compared = tuned.comparison
    if compared is not None:
        gap = compared.difference
        verdict = (
            "better"
            if gap.low > 0
            else "worse: keep what is declared"
            if gap.high < 0
            else "a difference that may be chance"
        )
        click.echo(
            f"\nOn the test slice: NDCG@10 {compared.tuned.value:.4f} against {compared.declared.value:.4f} as "
            f"declared; {gap.value:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}: {verdict}"
        )
        if tuned.looks > 1:
            say(f"the test slice was used {tuned.looks} times: each choice by it makes it less of a test")


COMMANDS = (report, tune)
