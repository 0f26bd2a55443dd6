"""`python -m shortlist.simulation`: write a world's history to files, or let its users loose on a running service.

python -m shortlist.simulation --write DIR --users 10000 --items 100000 --events 1000000
python -m shortlist.simulation --url http://127.0.0.1:8000 --world DIR/world.npz --users 100 --seconds 60
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np

from shortlist.simulation.behaviour import DAY_MS
from shortlist.simulation.generate import generate, load, save
from shortlist.simulation.live import Crowd, OverHttp, ServiceError, Tally, during, run
from shortlist.simulation.world import World


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the service failed, 2 wrong use."""
    options = parser().parse_args(arguments)
    try:
        return write(options) if options.write is not None else live(options)
    except ServiceError as error:
        say(str(error), sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        say(str(error), sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m shortlist.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="DIR", help="write Parquet parts and world.npz to this directory")
    what.add_argument("--url", help="the address of a running service: http://HOST:PORT")
    made.add_argument("--world", type=Path, default=Path("world.npz"), help="with --url: the world.npz of its history")
    made.add_argument("--users", type=int, default=1_000, help="users of the world, or users who ask (default 1000)")
    made.add_argument("--items", type=int, default=2_000, help="items of the world (default 2000)")
    made.add_argument("--events", type=int, default=200_000, help="about how many events to write (default 200000)")
    made.add_argument("--days", type=int, default=90, help="days of history, ending today (default 90)")
    made.add_argument("--seconds", type=float, default=60.0, help="how long to ask (default 60)")
    made.add_argument("--seed", type=int, default=0)
    return made


def write(options: argparse.Namespace) -> int:
    """The history of a world that ends today, as files to import."""
    now = time.time_ns() // 1_000_000
    start = now - now % DAY_MS - options.days * DAY_MS
    world = World(options.seed, options.users, options.items, start=start, days=options.days)
    history = generate(world, options.write, options.events, options.seed, progress=counter)
    save(options.write / "world.npz", history)
    say(f"\n{history.slates:,} slates shown to {int(history.known_users.sum()):,} users, in {options.write}")
    return 0


def live(options: argparse.Namespace) -> int:
    """Users ask a service, look at its slates and tell it what they did."""
    world, seen = load(options.world)
    service = OverHttp(options.url)
    try:
        crowd = Crowd(world, service, np.random.default_rng(options.seed), options.users, seen)
        total = run(crowd, during(options.seconds), report)
    finally:
        service.close()
    say(f"all: {total}")
    return 0


def report(tally: Tally) -> None:
    """Print one line."""
    say(str(tally))


def counter(done: int, expected: int) -> None:
    """Show how far it is, on one line of standard error."""
    sys.stderr.write(f"\r{done:,} of about {expected:,} events")
    sys.stderr.flush()


def say(text: str, to: TextIO | None = None) -> None:
    """Print one line at once, to standard output unless told otherwise."""
    stream = to or sys.stdout
    stream.write(text + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
