"""The past, asked again: requests put to a pipeline's own stages while the log is replayed underneath them.

Every request meets exactly the state that it would have met: features, seen items, availability and popularity as of
its log position. Models are those of the pipeline; whoever calls sees to it that they were fitted on nothing later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shortlist.events.batch import Batch
from shortlist.events.log import EventLog
from shortlist.features.context import values_of
from shortlist.features.hashing import hash_strings
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import NOTHING, Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.runner import Pipeline
from shortlist.retrieval.catalogue import Catalogue
from shortlist.training.requests import Requests

Progress = Callable[[str, float], None]
"""Told the step that runs and the share of it that is done, from 0 to 1."""
SLATE = 10


class Past:
    """A log read forward, and the table that follows it."""

    def __init__(self, log: EventLog, table: FeatureTable) -> None:
        self.table = table
        self._batches = log.scan(table.position)
        self._rest: Batch | None = None

    def advance(self, position: int) -> None:
        """Bring the table to `position`, which may not lie before where it is. Raises ValueError."""
        if position < self.table.position:
            raise ValueError(f"the table knows events up to {self.table.position}; it cannot go back to {position}")
        while self.table.position < position:
            if self._rest is None:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise ValueError(f"the log ends at {self.table.position}, before {position}")
            self.table.update(self._rest.slice(self.table.position, position))
            if self._rest.stop <= position:
                self._rest = None


@dataclass(frozen=True)
class Asked:
    """One request and what the pipeline found: each source's own proposals, and what they merge to.

    Both are after the filters; `proposals` are in each source's order, `merged` in the merger's.
    """

    number: int
    query: Query
    proposals: Mapping[str, Candidates]
    merged: Candidates


def ask(
    pipeline: Pipeline, past: Past, users: Sequence[str], requests: Requests, step: str, progress: Progress
) -> Iterator[Asked]:
    """Retrieve for every request, in log order; `users` are the ids of user indexes. No stage is ever late here."""
    for number in range(len(requests)):
        past.advance(int(requests.position[number]))
        query = Query(
            user=users[requests.user[number]],
            k=SLATE,
            now=int(requests.now[number]),
            request=str(number),
            deadline=Deadline(math.inf),
            context=values_of(requests.context, number),
        )
        for stage in pipeline.understand:
            for name, value in stage.learn(query).items():
                query.learn(name, value)
        proposed = {source.name: source.propose(query) for source in pipeline.sources}
        merger = pipeline.merger
        merged = merger.merge(query, proposed) if merger is not None else next(iter(proposed.values()), NOTHING)
        yield Asked(number, query, *_eligible(pipeline, query, proposed, merged))
        if number % 50 == 0:
            progress(step, number / len(requests))
    progress(step, 1.0)


def _eligible(
    pipeline: Pipeline, query: Query, proposed: Mapping[str, Candidates], merged: Candidates
) -> tuple[dict[str, Candidates], Candidates]:
    """What the filters leave of each list; every item is asked about once."""
    every = Candidates(np.unique(np.concatenate([merged.items, *(found.items for found in proposed.values())])))
    dropped = np.setdiff1d(every.items, filtered(pipeline, query, every).items)

    def rest(candidates: Candidates) -> Candidates:
        return candidates.take(~np.isin(candidates.items, dropped)) if len(dropped) else candidates

    return {name: rest(found) for name, found in proposed.items()}, rest(merged)


class LiveColumns:
    """The hydrator that reads every feature of the user and of each candidate from the table, as of the query's now."""

    name = "features"

    def __init__(self, catalogue: Catalogue, user: str) -> None:
        self.catalogue, self.user = catalogue, user
        self.columns = catalogue.table.features.columns

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The candidates with the feature block."""
        items = self.catalogue.hashes_of(candidates.items)
        ids = {self.user: hash_strings([query.user]), self.catalogue.item: items}
        read = self.catalogue.table.read(ids, query.now, query.context, self.columns)
        return candidates.with_matrix(self.columns, read.values)


def filtered(pipeline: Pipeline, query: Query, candidates: Candidates) -> Candidates:
    """What every filter lets through."""
    for stage in pipeline.filters:
        if len(candidates):
            candidates = candidates.take(stage.keep(query, candidates))
    return candidates


def described(pipeline: Pipeline, query: Query, candidates: Candidates) -> Candidates:
    """The candidates with the columns that every hydrator writes."""
    for stage in pipeline.hydrators:
        candidates = stage.describe(query, candidates)
    return candidates
