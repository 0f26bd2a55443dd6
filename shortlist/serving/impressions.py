"""Impressions: what was shown, logged behind the answer.

An observer only puts the slate into a queue. One thread takes what has gathered, writes it as events of the kind
`impression`, and the log commits many slates at once. Of some requests, drawn by a hash of the request's id, the
feature vectors go along with the log position that they were read at, so that the skew audit can replay them.
"""

from __future__ import annotations

import logging
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from queue import Empty, Full, Queue
from typing import Any

from shortlist.events.log import EventLog, LogError
from shortlist.features import vectors
from shortlist.features.context import encode as encode_context
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query, Slate

logger = logging.getLogger(__name__)

PENDING = 20_000
"""Slates that may wait; beyond that new ones are lost and counted, because memory is finite and answers come first."""
AT_ONCE, GATHER_SECONDS = 500, 0.1
"""Slates that are written together, and how long the first waits for others: a commit costs as much as a slate."""
RETRY_SECONDS = 1.0
UNLOGGED = "unlogged"
"""Set in `query.known` where the caller shows the slate to nobody."""
SAMPLED = "sampled"
"""Set in `query.known` where the feature vectors of the slate are to be logged."""
POSITION = "log_position"
"""The column that says up to where the events were known when the item's features were read."""


class Impressions:
    """The observer, the queue and the thread. `count` is told (outcome, how many impressions)."""

    name = "impressions"

    def __init__(
        self,
        log: EventLog,
        user: str,
        item: str,
        fingerprint: str,
        sample: float,
        count: Callable[[str, int], None],
    ) -> None:
        self.log, self.user, self.item, self.fingerprint, self.sample = log, user, item, fingerprint, sample
        self.count = count
        self.lost = 0
        self._queue: Queue[tuple[Query, Slate, Candidates] | None] = Queue(PENDING)
        self._thread = threading.Thread(target=self._write, name="impressions", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def observe(self, query: Query, slate: Slate, shown: Candidates) -> None:
        """Take note of a slate; returns at once. A slate for nobody in particular is no impression."""
        if query.user is None or not slate.items or UNLOGGED in query.known:
            return
        try:
            self._queue.put_nowait((query, slate, shown))
        except Full:
            self._lose(len(slate.items))

    def draws(self, request: str) -> bool:
        """Whether the feature vectors of this request are to be logged; the same for the same id."""
        return zlib.crc32(request.encode()) < self.sample * 2**32

    @property
    def pending(self) -> int:
        """Slates that are not written yet."""
        return self._queue.qsize()

    def stop(self, seconds: float) -> None:
        """Write what is pending, for at most that long."""
        if self._thread.is_alive():
            self._stopping.set()
            self._queue.put(None)
            self._thread.join(seconds)

    def _lose(self, count: int) -> None:
        self.lost += count
        self.count("lost", count)

    def _write(self) -> None:
        while True:
            first = self._queue.get()
            slates = [] if first is None else [first]
            done = first is None
            if not done:
                self._stopping.wait(GATHER_SECONDS)
            while len(slates) < AT_ONCE and not done:
                try:
                    following = self._queue.get_nowait()
                except Empty:
                    break
                done = following is None
                slates.extend([] if following is None else [following])
            self._append([event for slate in slates for event in self.events(*slate)])
            if done:
                return

    def _append(self, events: list[Mapping[str, Any]]) -> None:
        """Append, and try again as long as the log refuses and the service runs: a full disk may be mended."""
        while events:
            try:
                receipt = self.log.append(events)
            except LogError as error:
                logger.error("%d impressions wait: %s", len(events), error)
                if self._stopping.wait(RETRY_SECONDS):
                    self._lose(len(events))
                    return
                continue
            self.count("logged", receipt.accepted)
            if receipt.refusals:
                first = receipt.refusals[0]
                logger.error("%d impressions were refused, the first because %s", len(receipt.refusals), first.reason)
                self._lose(len(receipt.refusals))
            return

    def events(self, query: Query, slate: Slate, shown: Candidates) -> list[Mapping[str, Any]]:
        """The slate as events, one per item, the top one at position 1."""
        sampled = SAMPLED in query.known and POSITION in shown.columns
        context = encode_context(query.context)
        finite = [score if abs(score) < float("inf") else None for score in slate.scores]
        made: list[Mapping[str, Any]] = []
        for place, (item, score) in enumerate(zip(slate.items, finite, strict=True)):
            event = {
                "kind": "impression",
                "at": query.now,
                self.user: query.user,
                self.item: item,
                "request": query.request,
                "position": place + 1,
                "release": slate.release,
                "arm": slate.arm,
                "propensity": slate.propensities[place],
                "score": score,
                "context": context,
            }
            if sampled and shown.matrix is not None and not math.isnan(shown.columns[POSITION][place]):
                event[POSITION] = int(shown.columns[POSITION][place])
                event["now"] = query.now
                event["vector"] = vectors.encode(self.fingerprint, shown.matrix[:, place])
            made.append(event)
        return made
