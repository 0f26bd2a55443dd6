"""Users of the world who ask for slates, look, act, and tell what they did: over HTTP or in process.

Each turn one user, drawn by activity, asks for a slate, looks through it (`World.answer`), and posts what they did.
The slate's true expected value stands beside that of the best slate there was and of the best slate that is the same
for everyone, so that one sees what the ranker has learned, and that it goes on learning.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import EventLog
from shortlist.events.schema import Event
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.stages import Ranker
from shortlist.simulation.world import World

SLATE = 10
AHEAD_MS = 240_000
"""Events are dated at most this far ahead of the clock; a log refuses what lies more than five minutes ahead."""


class ServiceError(Exception):
    """The service did not answer as it should; the message says what was asked and what came back."""


class Service(Protocol):
    """Whoever answers the users."""

    def recommend(self, user: str, k: int, now: int) -> tuple[str, ...]:
        """At most `k` item ids, best first."""

    def post(self, events: list[Event]) -> None:
        """Take note of what happened."""


class InProcess:
    """Any ranker, with the log that its features learn from. It logs its own impressions, as a served one does."""

    def __init__(self, ranker: Ranker, log: EventLog, deadline_ms: float = 1_000.0) -> None:
        self.ranker, self.log, self.deadline_ms = ranker, log, deadline_ms
        self.asked = 0

    def recommend(self, user: str, k: int, now: int) -> tuple[str, ...]:
        """Ask the ranker."""
        self.asked += 1
        query = Query(user, k, now, f"live-{now}-{self.asked}", Deadline.after(self.deadline_ms))
        return self.ranker.rank(query).items

    def post(self, events: list[Event]) -> None:
        """Append to the log. Raises ServiceError where it refuses an event."""
        receipt = self.log.append(events)
        if receipt.refusals:
            raise ServiceError(
                f"the log refused {len(receipt.refusals)} events, the first one at {receipt.refusals[0]}"
            )


class OverHttp:
    """A running service; one connection, kept open and opened anew where the service closed it."""

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.scheme not in ("", "http") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a service; write http://HOST:PORT")
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
        self.prefix = parts.path.rstrip("/")

    def recommend(self, user: str, k: int, now: int) -> tuple[str, ...]:  # noqa: ARG002 - the service has its own clock
        """`POST /recommend`."""
        answer = self._ask("/recommend", {"user": user, "k": k})
        return tuple(entry["item"] for entry in answer["items"])

    def post(self, events: list[Event]) -> None:
        """`POST /events`."""
        if events:
            self._ask("/events", [event.to_dict() for event in events])

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _ask(self, path: str, body: object) -> dict[str, list[dict[str, str]]]:
        text = json.dumps(body)
        try:
            try:
                status, answer = self._send(path, text)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                status, answer = self._send(path, text)  # an idle connection may have been closed: once more
        except (OSError, http.client.HTTPException) as error:
            host = f"{self.connection.host}:{self.connection.port}"
            raise ServiceError(f"POST {path} on {host} failed: {error!r}; is the service running there?") from error
        if not 200 <= status < 300:
            raise ServiceError(f"POST {path} answered {status}: {answer[:500].decode(errors='replace')}")
        decoded: dict[str, list[dict[str, str]]] = json.loads(answer)
        if decoded.get("refused"):
            raise ServiceError(f"POST {path} refused {decoded['refused'][0]}; does it serve this world's project?")
        return decoded

    def _send(self, path: str, body: str) -> tuple[int, bytes]:
        try:
            self.connection.request("POST", self.prefix + path, body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            return response.status, response.read()
        except BaseException:
            self.connection.close()  # half a conversation cannot be gone on with
            raise


@dataclass
class Tally:
    """Sums of true expected values over requests: of what was shown, of the best slate, of the common one."""

    requests: int = 0
    value: float = 0.0
    best: float = 0.0
    popular: float = 0.0

    @property
    def ratio(self) -> float:
        """The value shown as a share of the best possible; NaN before the first request."""
        return self.value / self.best if self.best else float("nan")

    def add(self, other: Tally) -> None:
        """Add the sums of another."""
        self.requests += other.requests
        self.value += other.value
        self.best += other.best
        self.popular += other.popular

    def __str__(self) -> str:
        n = max(1, self.requests)
        return (
            f"{self.requests:6d} requests, value per request {self.value / n:7.3f}, best possible {self.best / n:7.3f} "
            f"({self.ratio:6.1%}), best slate for all {self.popular / n:7.3f}"
        )


@dataclass
class Crowd:
    """Some users of a world in front of a service.

    `seen` are keys `user * all items + item` of what they opened before (`History.seen`): it is not counted among the
    best, because the service does not show it again. What they hid is, though the service does not show that either:
    in this world it may be worth showing. `clock` gives now in ms UTC.
    """

    world: World
    service: Service
    rng: np.random.Generator
    users: int
    seen: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000

    def __post_init__(self) -> None:
        activity = self.world.users.activity
        if not 1 <= self.users <= len(activity):
            raise ValueError(f"{self.users} users are asked for; this world has {len(activity)}, at least 1 is needed")
        self.crowd = self.rng.choice(len(activity), self.users, replace=False, p=activity / activity.sum())
        self.weights = activity[self.crowd] / activity[self.crowd].sum()
        self.opened: dict[int, set[str]] = {}
        self.announced = self.world.end
        self.noticed: set[int] = set()

    def turn(self) -> Tally:
        """One user asks, looks and acts. Items born since the last turn are announced first."""
        now = self.clock()
        born = self.world.births(self.announced, now)
        self.announced = max(self.announced, now)
        number = int(self.rng.choice(self.crowd, p=self.weights))
        user = f"u{number}"
        if number not in self.noticed:
            self.noticed.add(number)
            born.append(Event("user", now, {"user": user}, self.world.user_attributes(number)))
        if born:
            self.service.post(born)
        slate = self.service.recommend(user, SLATE, now)
        opened = self.opened_by(number)
        popular = self.world.popular_slate(SLATE, self.announced // 3_600_000 * 3_600_000, opened)
        tally = Tally(
            1,
            self.world.slate_value(user, slate, now),
            self.world.slate_value(user, self.world.best_slate(user, SLATE, now, opened), now),
            self.world.slate_value(user, popular, now),
        )
        shown = self.clock()
        events = self.world.answer(user, slate, shown, self.rng)
        # Nobody waits here until a film has ended: it is told at once, dated as far ahead as a log takes it.
        self.service.post([Event(e.kind, min(e.at, shown + AHEAD_MS), e.keys, e.fields) for e in events])
        opened.update(event.keys["item"] for event in events if event.kind == "click")
        return tally

    def opened_by(self, user: int) -> set[str]:
        """The items that user number `user` has opened, in the history or here."""
        if user not in self.opened:
            count = len(self.world.items.category)
            first, last = np.searchsorted(self.seen, [user * count, (user + 1) * count])
            self.opened[user] = {f"i{item}" for item in self.seen[first:last] % count}
        return self.opened[user]


def during(seconds: float) -> Iterator[int]:
    """0, 1, 2 ... until that time is over."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1


def run(crowd: Crowd, turns: Iterable[int], report: Callable[[Tally], None] | None = None, every: int = 100) -> Tally:
    """One turn for each of `turns` (`range(1000)`, `during(60)`); returns the tally of all.

    `report` is called with the tally of every `every` turns, and of the rest at the end.
    """
    total, recent = Tally(), Tally()
    for _ in turns:
        recent.add(crowd.turn())
        if recent.requests == every:
            total.add(recent)
            if report is not None:
                report(recent)
            recent = Tally()
    total.add(recent)
    if report is not None and recent.requests:
        report(recent)
    return total
