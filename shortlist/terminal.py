"""How results and progress look on a terminal, and where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A function that shows how far a named step is, from 0 to 1, on standard error.

    A bar per step on a terminal; elsewhere one line when a step begins and one when it ends.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        begun: dict[str, float] = {}

        def report(step: str, done: float) -> None:
            if step not in begun:
                begun[step] = time.perf_counter()
            elif done >= 1 and begun[step] and not quiet:
                sys.stderr.write(f"{step}: {time.perf_counter() - begun[step]:.1f} s\n")
                begun[step] = 0.0

        yield report
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description:<28}"), BarColumn(40), TimeElapsedColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: float) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=1.0)
            bars.update(tasks[step], completed=done)

        yield show
