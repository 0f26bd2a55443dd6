"""The stages of a request, one verb each. A stage's return type is its permission.

A query hydrator learns about the query, a source proposes items, a hydrator and a scorer describe them with columns,
a filter drops (a mask), a selector arranges (an order), an observer watches (nothing). None of them can do another's
work, because none of them returns what that would take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query, Slate


class Stage(Protocol):
    """Anything with a name: metrics, explanations and `degraded` speak of stages by it."""

    @property
    def name(self) -> str:
        """Unique within its pipeline."""


class QueryHydrator(Stage, Protocol):
    """Learns about the query before anything is retrieved: the user's features, the user's vector."""

    def learn(self, query: Query) -> Mapping[str, Any]:
        """What became known; the runner writes it to `query.known`."""


class Source(Stage, Protocol):
    """Proposes items."""

    def propose(self, query: Query) -> Candidates:
        """At most the source's own quota of items, best first."""


class Resort(Stage, Protocol):
    """Has something to show whatever happens."""

    def portions(self, query: Query) -> Iterator[Candidates]:
        """All items that there are, each once, best first, a portion at a time; no portion is empty."""


class Hydrator(Stage, Protocol):
    """Describes candidates with columns."""

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The same candidates in the same order, with more columns; the runner refuses anything else."""


class Describing(Hydrator, Protocol):
    """A hydrator that always writes the same columns, NaN where it knows nothing: it can be skipped."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it writes."""


class Filter(Stage, Protocol):
    """Drops candidates. Filters are never skipped, whatever the deadline: what they say holds always."""

    def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:
        """True for each candidate that stays."""


class Scorer(Stage, Protocol):
    """Gives each candidate a score; higher is better, NaN ranks last."""

    def score(self, query: Query, candidates: Candidates) -> Column:
        """One score per candidate."""


class Merger(Stage, Protocol):
    """Makes one list of what the sources propose."""

    def merge(self, query: Query, proposals: Mapping[str, Candidates]) -> Candidates:
        """The proposals of each source by its name, as one list without duplicates, best first."""


class Selector(Stage, Protocol):
    """Arranges scored candidates; they carry the column `score`."""

    def arrange(self, query: Query, candidates: Candidates) -> NDArray[np.intp]:
        """Indexes into the candidates in the order of the slate, of which the first `query.k` are shown.

        A candidate that is left out is not shown.
        """


@dataclass(frozen=True)
class Decision:
    """An order, and how it came about.

    `propensities` are the probabilities with which the first places were given to whom they are given to; 1 for the
    places beyond. `account` says for an explanation what each rule did.
    """

    order: NDArray[np.intp]
    propensities: Column = field(default_factory=lambda: np.empty(0))
    account: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.order)


@runtime_checkable
class Deciding(Selector, Protocol):
    """A selector that draws or follows rules, and can account for it."""

    def decide(self, query: Query, candidates: Candidates) -> Decision:
        """What `arrange` answers, and how it came about."""


class Observer(Stage, Protocol):
    """Watches the finished slate: logs impressions, counts metrics."""

    def observe(self, query: Query, slate: Slate, shown: Candidates) -> None:
        """Called when the answer is ready and before it is sent: keep what is needed and return at once.

        `shown` are the slate's candidates with every column.
        """


class Ranker(Protocol):
    """The one shape: a pipeline is a ranker, and so is everything that wraps one."""

    def rank(self, query: Query) -> Slate:
        """At most `query.k` items, best first; never an error for a user or an item that is unknown."""
