"""What the two towers learn from: examples, items, and how raw columns become numbers a model can look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shortlist.features.entities import Ragged
from shortlist.features.hashing import Hashes
from shortlist.retrieval.models.towers import AttributeColumn, Scaling, places_in
from shortlist.training.towers.model import Bags, Side

OLD_SHARE, HALF_AGE = 0.1, 0.1


@dataclass(frozen=True)
class TowerExamples:
    """n positives: who acted on what, and what was known of them strictly before.

    `user` and `item` are hashes, shape (n,); `history` hashes of items, newest first, shape (n, h), 0 where it is
    shorter; `at` ms UTC; `columns` the user attributes and context values of the spec, n rows each. `beside` are
    hashes of items that were shown beside the positive and not acted on, shape (n, s), 0 where they are fewer.
    """

    user: Hashes
    history: NDArray[Any]
    item: Hashes
    at: NDArray[np.int64]
    columns: Mapping[str, AttributeColumn]
    beside: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class TowerItems:
    """The m items that can be retrieved: their hashes, each once, and the item attributes of the spec, m rows each."""

    hashes: Hashes
    columns: Mapping[str, AttributeColumn]


@dataclass(frozen=True)
class Encoding:
    """How raw columns become a tower's inputs: the sorted vocabulary of each category, the scaling of each number.

    `widths` says how many numbers each column has that is a vector already; they are taken as they are.
    """

    ids: Hashes
    values: Mapping[str, Hashes]
    scalings: Mapping[str, Scaling]
    widths: Mapping[str, int]

    @property
    def numbers(self) -> int:
        """How many numbers a row has."""
        return 2 * len(self.scalings) + sum(self.widths.values())

    @classmethod
    def of(cls, ids: Hashes, columns: Mapping[str, AttributeColumn], least: int = 1) -> Encoding:
        """The encoding that some rows need. Values that stand `least` times or more are told apart."""
        values = {
            name: _distinct(column.values, least) for name, column in columns.items() if isinstance(column, Ragged)
        }
        arrays = {name: column for name, column in columns.items() if not isinstance(column, Ragged)}
        scalings = {name: _scaling(column) for name, column in arrays.items() if column.ndim == 1}
        widths = {name: column.shape[1] for name, column in arrays.items() if column.ndim == 2}
        return cls(_distinct(ids), values, scalings, widths)

    def encode(self, ids: Hashes, columns: Mapping[str, AttributeColumn]) -> Side:
        """Rows as inputs."""
        bags, numbers = {}, [np.empty((len(ids), 0), np.float32)]
        for name, column in columns.items():
            if isinstance(column, Ragged):
                bags[name] = _bags(places_in(self.values[name], column.values), column.offsets)
            elif name in self.widths:
                numbers.append(column.astype(np.float32))
            else:
                numbers.append(self.scalings[name].apply(column))
        return Side(torch.from_numpy(places_in(self.ids, ids)), bags, torch.from_numpy(np.concatenate(numbers, axis=1)))


def checked(examples: TowerExamples, items: TowerItems) -> None:
    """Raise ValueError for examples that nothing can be learned from."""
    if not len(items.hashes):
        raise ValueError("the towers have no items to learn: the catalogue is empty; ingest items or events first")
    if not len(examples):
        raise ValueError("the towers have no positive examples to learn from; look at the project's labels")
    if len(np.unique(items.hashes)) != len(items.hashes) or not items.hashes.all():
        raise ValueError("the items of the towers must be distinct and not 0")
    unknown = int((~np.isin(examples.item, items.hashes)).sum())
    if unknown:
        raise ValueError(f"{unknown} of {len(examples)} positives name items that are not among the items")
    beside = len(examples) if examples.beside is None else len(examples.beside)
    shapes = {len(examples.history), len(examples.item), len(examples.at), len(examples), beside}
    if len(shapes) != 1:
        raise ValueError(f"the examples' arrays have different lengths: {sorted(shapes)}")


def recency(at: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much each example counts, 1 on average: what is popular moves on, so the newest count most.

    Age is measured in examples, not in days, so that slow and fast catalogues are treated alike; the oldest keep a
    share, because tastes last longer than fashions.
    """
    age = np.empty(len(at))
    age[np.argsort(at, kind="stable")] = np.arange(len(at))[::-1] / len(at)
    weights = OLD_SHARE + (1 - OLD_SHARE) * 2.0 ** (-age / HALF_AGE)
    return np.asarray(weights / weights.mean(), np.float32)


def chance_in_batch(positive: NDArray[np.int64], items: int, batch: int, uniform: int) -> NDArray[np.float64]:
    """The probability of each item to be in a batch at least once, as a positive or drawn uniformly."""
    shares = np.minimum(np.bincount(positive, minlength=items) / len(positive), 1 - 1e-9)
    absent = batch * np.log1p(-shares) + uniform * np.log1p(-min(1 / items, 1 - 1e-9))
    return np.asarray(-np.expm1(absent))


def in_order_of_hash(items: TowerItems) -> TowerItems:
    """The same items, so that their order does not matter."""
    order = np.argsort(items.hashes)
    return TowerItems(items.hashes[order], {name: _rows(column, order) for name, column in items.columns.items()})


def _distinct(hashes: Hashes, least: int = 1) -> Hashes:
    found, counts = np.unique(hashes, return_counts=True)
    return np.asarray(found[(counts >= least) & (found != 0)])


def _scaling(column: NDArray[np.float64]) -> Scaling:
    known = column[np.isfinite(column)]
    mean, deviation = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    return Scaling(mean, deviation if deviation > 0 else 1.0)


def _bags(places: NDArray[np.int64], offsets: NDArray[np.int64]) -> Bags:
    """Bags in which place 0, the unknown, stands where a row has no value."""
    lengths = np.diff(offsets)
    filled = np.maximum(lengths, 1)
    starts = np.concatenate([[0], np.cumsum(filled)]).astype(np.int64)
    out = np.zeros(starts[-1], np.int64)
    inside = np.arange(len(places)) - np.repeat(offsets[:-1], lengths)
    out[np.repeat(starts[:-1], lengths) + inside] = places
    return Bags(torch.from_numpy(out), torch.from_numpy(starts))


def _rows(column: AttributeColumn, order: NDArray[np.intp]) -> AttributeColumn:
    if not isinstance(column, Ragged):
        return column[order]
    lengths = np.diff(column.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Ragged(column.values[np.repeat(column.offsets[order], lengths) + inside], offsets)
