"""How results and progress look on a terminal, and where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

Report = Callable[[str, float], None]
"""Told the step that runs and the share of it that is done, from 0 to 1."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> None:
    """A table for people: the first `text` columns are text, the others numbers. Text alone may be folded."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        is_text = number < text
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


class Clock:
    """How long each step was the one that ran: from when it is told until another one is, or its end."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._ended: set[str] = set()
        self._running, self._since = "", 0.0

    def tell(self, step: str, done: float) -> bool:
        """A step runs, or has ended; whether it has ended after it was seen to run. What has ended may begin anew."""
        now = time.perf_counter()
        if self._running:
            self._spent[self._running] += now - self._since
        begins = step not in self._spent or step in self._ended
        if begins:
            self._spent[step] = 0.0
            self._ended.discard(step)
        if done >= 1:
            self._ended.add(step)
        self._running, self._since = "" if done >= 1 else step, now
        return done >= 1 and not begins

    def seconds(self, step: str) -> float:
        """How long so far."""
        return self._spent[step] + (time.perf_counter() - self._since if step == self._running else 0.0)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A function that shows how far a named step is, from 0 to 1, on standard error.

    A bar per step on a terminal; elsewhere a line for each that was seen to run, when it ends.
    """
    from rich.console import Console

    console, clock = Console(stderr=True), Clock()
    if quiet or not console.is_terminal:

        def report(step: str, done: float) -> None:
            if clock.tell(step, done) and not quiet:
                sys.stderr.write(f"{step}: {clock.seconds(step):.1f} s\n")

        yield report
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Elapsed(ProgressColumn):
        """The clock's time; a bar's own counts on while other steps run."""

        def render(self, task: Task) -> Text:
            return Text(str(timedelta(seconds=int(clock.seconds(task.description)))), style="progress.elapsed")

    with Progress(TextColumn("{task.description:<28}"), BarColumn(40), Elapsed(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: float) -> None:
            clock.tell(step, done)
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=1.0)
            bars.update(tasks[step], completed=done)

        yield show
