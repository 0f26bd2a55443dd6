"""The whole of Shortlist once: events in, models trained and measured, a service that answers and learns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.status import Status

from shortlist.child import Child, ask
from shortlist.events.sqlite import SqliteLog
from shortlist.loop import learn
from shortlist.project import Project, load_project
from shortlist.report import loss_rows, notes, quality_rows
from shortlist.sample import choose
from shortlist.settings import Settings, load_settings
from shortlist.terminal import print_table
from shortlist.titles import titles
from shortlist.training.releases import Release

MARK = ".shortlist-demo"
RANKING = "import shortlist.ranking.standard, shortlist.ranking.bitvectors"
"""Compiles the rankers' kernels, on a new machine, in a process of its own while the sources learn."""
RECENT = 200_000
"""Events at the end of the log among which the demo looks for somebody to ask for."""


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass
class Story:
    """What is told while it happens: steps with their times. Silent for programs."""

    console: Console
    silent: bool = False
    begun: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    status: Status | None = None

    def say(self, text: str = "") -> None:
        """A line."""
        if not self.silent:
            self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """A step of the story: a spinner while it runs, one line when it is done. Append to the list what it did."""
        start, notes = time.perf_counter(), list[str]()
        if self.silent or not self.console.is_terminal:
            yield notes
        else:
            with self.console.status(f"{name} ...") as self.status:
                yield notes
            self.status = None
        self.seconds[name] = time.perf_counter() - start
        first, *others = notes
        self.say(f"[green]✓[/green] [bold]{name:<7}[/bold]{self.seconds[name]:6.1f} s   {first}")
        for note in others:
            self.say(f"{'':<20}{note}")

    def report(self, part: str, share: float) -> None:
        """Show how far a part of the running step is."""
        if self.status is not None:
            self.status.update(f"{part} {share:.0%}")

    @property
    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.perf_counter() - self.begun


@dataclass(frozen=True)
class Guest:
    """Somebody to ask for: a user, the items they acted on last, newest first, and the title of every item."""

    user: str
    recent: tuple[str, ...]
    titles: dict[str, str]


def run(data: Path | None, folder: Path, port: int, once: bool, as_json: bool) -> int:
    """Ingest, train, evaluate, publish, serve, ask. With `once` it stops after one answer. Raises DemoError."""
    story = Story(Console(), silent=as_json)
    story.say("[bold]Shortlist[/bold]: from events to the ten that matter to one person\n")
    prepare(folder)
    with subprocess.Popen([sys.executable, "-c", RANKING], stderr=subprocess.DEVNULL):
        project, settings = ingest(story, data, folder)
        release = train(story, project, settings)
    guest = choose_guest(project, settings)
    with Child(folder, port) as child:
        with story.step("Serve") as said:
            child.wait_ready()
            slate = ask(f"{child.url}/recommend", {"user": guest.user, "k": 10})
            said.append(f"{child.url}, a process of its own with {child.memory_mb() or 0:.0f} MB of memory")
        if as_json:
            figures = {"seconds": round(story.elapsed, 2), "rss_mb": child.memory_mb(), "steps": story.seconds}
            sys.stdout.write(json.dumps({**figures, "release": release.version, "user": guest.user, **slate}) + "\n")
            return 0
        story.say(f"  [bold]{story.elapsed:.1f} s[/bold] from files to the first answer over HTTP\n")
        show_slate(story, guest, slate)
        if not once:
            invite(story, project, child, guest, slate)
    return 0


def prepare(folder: Path) -> None:
    """An empty folder for the demo; an earlier demo's is replaced. Raises DemoError for anybody else's."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise DemoError(f"{folder} is not empty and no earlier demo's; name another folder with --dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("made by `shortlist demo`, which replaces this folder when it runs again\n")


def ingest(story: Story, data: Path | None, folder: Path) -> tuple[Project, Settings]:
    """The demo's project, with its events in its log."""
    with story.step("Data") as said:
        sample = choose(data, story.say)
        said.append(sample.about)
    sample.write_project(folder)
    project, settings = load_project(folder), load_settings(folder, {})
    settings.make_folders()
    with story.step("Ingest") as said:
        log = SqliteLog(settings.place("log"), project.schemas)
        try:
            sample.fill(log, lambda share: story.report("Ingest", share))
            said.append(f"{log.position:,} events, each checked and durable, in {settings.place('log')}")
        finally:
            log.close()
    return project, settings


def train(story: Story, project: Project, settings: Settings) -> Release:
    """The first release, and how good it is."""
    with story.step("Train") as said:
        release = learn(project, settings, 0, story.report).release
        steps = [f"{step} {seconds:.1f} s" for step, seconds in release.created["seconds"].items()]
        said += [f"release {release.version}", ", ".join(steps)]
    if not story.silent:
        story.say("\nHow good is it? Every method answered the same requests of the last fifth of the log, knowing")
        story.say("only what was known by then. Means over users with 95 % intervals; popularity is the baseline.\n")
        print_table(*quality_rows(release))
        story.say()
        print_table(*loss_rows(release))
        story.say()
        for note in notes(release):
            story.say(note)
        story.say()
    return release


def choose_guest(project: Project, settings: Settings) -> Guest:
    """Whoever acted last and has done a fair amount, so that there is something to see."""
    log = SqliteLog(settings.place("log"), project.schemas, read_only=True)
    user, item = project.user.name, project.item.name
    kinds = [event.kind for event in project.labels.gains]
    acted: list[pa.Table] = []
    for batch in log.scan(max(0, log.position - RECENT), columns=[user, item]):
        acted += [batch.take(batch.of_kind(kind)).table.select([user, item]) for kind in kinds]
    table = pa.concat_tables(acted).combine_chunks()
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(table[user]).to_pylist()}
    users = table[user].to_pylist()
    chosen = next((who for who in reversed(users) if 20 <= counts[who] <= 200), (users or ["somebody"])[-1])
    theirs = table[item].filter(pc.equal(table[user], chosen)).to_pylist()
    return Guest(chosen, tuple(dict.fromkeys(reversed(theirs)))[:5], titles(log, project.item))


def show_slate(story: Story, guest: Guest, slate: dict[str, Any]) -> None:
    """The answer, with titles."""
    recent = "; ".join(guest.titles.get(item) or item for item in guest.recent)
    story.say(f"[bold]User {guest.user}[/bold] lately chose: {recent}")
    story.say("[bold]Shortlist[/bold] puts forward:")
    for place, shown in enumerate(slate["items"], start=1):
        story.say(f"  {place:2}  {guest.titles.get(shown['item']) or '':<58} [dim]{project_id(shown)}[/dim]")


def project_id(shown: dict[str, Any]) -> str:
    """The item's id and score, for those who compare with the raw answer."""
    score = shown["score"]
    return shown["item"] if score is None else f"{shown['item']}  {score:.3f}"


def invite(story: Story, project: Project, child: Child, guest: Guest, slate: dict[str, Any]) -> None:
    """Three commands to try, and wait until somebody has had enough."""
    kind = "watch" if any(event.kind == "watch" for event in project.events) else project.events[0].kind
    first = slate["items"][0]["item"]
    question = json.dumps({"user": guest.user, "k": 10})
    why = json.dumps({"user": guest.user, "k": 3, "explain": True})
    event = {"kind": kind, "at": 0, project.user.name: guest.user, project.item.name: first}
    event |= {"seconds": 600.0} if project.item.name != "film" else {"stars": 5.0}
    body = json.dumps(event).replace('"at": 0', """"at": '$(date +%s)000'""")
    story.say("\nTry it from another terminal; the documentation is at " + f"{child.url}/docs\n")
    story.say(f"  curl -s {child.url}/recommend -d '{question}'")
    story.say(f"  curl -s {child.url}/recommend -d '{why}'")
    story.say(f"  curl -s {child.url}/events -d '{body}' && curl -s {child.url}/recommend -d '{question}'\n")
    title = guest.titles.get(first) or first
    story.say(f"The last one says that user {guest.user} watched {title}: the next answer changes.")
    story.say("Ctrl-C ends the demo.")
    try:
        child.process.wait()
    except KeyboardInterrupt:
        story.say("\nbye")
        return
    raise DemoError(f"the service ended by itself: {child.last_words()}")
