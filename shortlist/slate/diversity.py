"""Diversity: objectives that look at how similar a candidate is to what the slate holds already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.pipeline.candidates import Column
from shortlist.pipeline.stages import Stage
from shortlist.slate.draft import Draft, Indexes, scaled
from shortlist.slate.targets import proposed
from shortlist.slate.values import Items, Mask, values_of

Vectors = NDArray[np.float32]
LEAST_VOLUME = 1e-6
"""The squared height, of at most 1, below which an item adds nothing to the volume but noise of the arithmetic."""


@runtime_checkable
class Embedding(Stage, Protocol):
    """A source that has a vector for each item."""

    def item_vectors(self, items: Items) -> Vectors:
        """The vector of each item by index, shape (items, dimensions); zeros where there is none."""


class Likeness(Protocol):
    """How similar items are, from 0 to 1; 1 to themselves, 0 where nothing is known of one."""

    def to(self, row: int) -> Column:
        """The similarity of each item to the one in `row`."""


LikenessOf = Callable[[Items], Likeness]


class Nearness:
    """Likeness by vectors: (1 + cosine) / 2, which is positive semidefinite as the cosine is."""

    def __init__(self, embedding: Embedding, items: Items) -> None:
        vectors = embedding.item_vectors(items)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        self.known: Mask = lengths > 0
        self.unit = vectors / np.where(self.known, lengths, 1.0)[:, None]

    def to(self, row: int) -> Column:
        """The similarity of each item to the one in `row`."""
        cosine = (self.unit @ self.unit[row]).astype(np.float64)
        similar = np.where(self.known & self.known[row], 0.5 + 0.5 * cosine, 0.0)
        similar[row] = 1.0
        return similar


class Overlap:
    """Likeness by an attribute's values: what two items share of all that either has (Jaccard)."""

    def __init__(self, entities: Entities, attribute: str, items: Items) -> None:
        self.values = values_of(entities, attribute, items)
        self.sizes = np.bincount(self.values.owners, minlength=len(items))

    def to(self, row: int) -> Column:
        """The similarity of each item to the one in `row`."""
        own = self.values.of(row)
        common = (self.values.words[:, None] == own).any(axis=1)  # of a few values: faster than a search
        shared = np.bincount(self.values.owners[common], minlength=self.values.count)
        similar: Column = shared / np.maximum(self.sizes + len(own) - shared, 1)
        similar[row] = 1.0
        return similar


class _Diverse:
    """The candidates that compete: the `among` most relevant, and what is pinned. Others count by relevance alone."""

    def __init__(self, draft: Draft, among: int) -> None:
        counted = draft.rated & proposed(draft.candidates)  # what a pin names takes no room and stretches no scale
        compete = draft.rated & (np.cumsum(counted) <= among)
        ends = compete & counted
        compete[draft.slate[draft.slate >= 0]] = True
        self.window: Indexes = np.flatnonzero(compete)
        self.items = draft.candidates.items[self.window]
        self.relevance = scaled(draft.relevance[self.window], ends[self.window])

    def row(self, candidate: int) -> int | None:
        """Where in the window a candidate stands; None where it does not compete."""
        row = int(self.window.searchsorted(candidate))
        return row if row < len(self.window) and self.window[row] == candidate else None

    def best_of(self, gains: Column, allowed: Mask) -> int:
        """The allowed candidate with the greatest gain; the most relevant one where none competes."""
        held = np.where(allowed[self.window], gains, -np.inf)
        row = int(held.argmax()) if len(held) else 0
        return int(self.window[row]) if len(held) and held[row] > -np.inf else int(allowed.argmax())


class MarginalRelevance(_Diverse):
    """MMR: relevance less the similarity to the most similar item of the slate."""

    def __init__(self, draft: Draft, likeness: LikenessOf, trade_off: float, among: int) -> None:
        super().__init__(draft, among)
        self.likeness = likeness(self.items)
        self.wanted = trade_off * self.relevance
        self.aversion = 1.0 - trade_off
        self.nearest: Column = np.zeros(len(self.window))

    def best(self, allowed: Mask) -> int:
        """The candidate with the greatest marginal relevance."""
        return self.best_of(self.wanted - self.aversion * self.nearest, allowed)

    def placed(self, candidate: int, place: int) -> None:  # noqa: ARG002
        """Let what is similar be worth less."""
        row = self.row(candidate)
        if row is not None:
            np.maximum(self.nearest, self.likeness.to(row), out=self.nearest)


class Determinantal(_Diverse):
    """DPP: the log-determinant of the slate's similarities grows by the squared height over what it holds.

    `heights` are kept by one row of the incremental Cholesky factor for each item placed, O(window) per earlier one.
    """

    def __init__(self, draft: Draft, likeness: LikenessOf, trade_off: float, among: int) -> None:
        super().__init__(draft, among)
        self.likeness = likeness(self.items)
        self.wanted = trade_off * self.relevance
        self.spread = 1.0 - trade_off
        self.heights: Column = np.ones(len(self.window))
        self.factor = np.empty((min(len(draft.slate), len(self.window)), len(self.window)))
        self.rows = 0

    def best(self, allowed: Mask) -> int:
        """The candidate that adds most to relevance and volume."""
        return self.best_of(self.wanted + self.spread * np.log(np.maximum(self.heights, LEAST_VOLUME)), allowed)

    def placed(self, candidate: int, place: int) -> None:  # noqa: ARG002
        """Take its direction out of what the others can add."""
        row = self.row(candidate)
        if row is None:
            return
        held = self.factor[: self.rows]
        height = np.sqrt(max(self.heights[row], LEAST_VOLUME))
        line = (self.likeness.to(row) - held[:, row] @ held) / height
        self.factor[self.rows] = line
        self.heights -= line**2
        self.rows += 1
