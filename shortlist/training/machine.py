"""Fitting a factorisation machine from what was shown: a Gibbs sampler that has nothing to tune.

Rendle, Factorization machines, ICDM 2010; learned as Bayesian matrix factorisation with attributes (Salakhutdinov and
Mnih, ICML 2008; Simm et al., Macau, MLSP 2017). The log-odds that a user acts on an item that was looked at are a
product of two vectors. An id's vector is normal around what its attributes say, and how far it strays is drawn with
everything else: few impressions leave a newcomer where the attributes put it, many move it as far as they prove. The
score is the mean over the samples: of the many vectors that explain the past equally well each says more
than is known, and they disagree about what is not.

An impression that was not acted on was seen and left, or never looked at: which, is drawn (position-based model;
Craswell et al., WSDM 2008). The place with most actions per impression is taken as one that is always looked at. What
is new may be wanted for being new: each age of items has a log-odds of its own, and the score is that of an old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.retrieval.index import Vectors
from shortlist.retrieval.ladder import build_index
from shortlist.retrieval.machine import Machine, Side, Steps, steps_of
from shortlist.retrieval.specs import FactorizationMachine
from shortlist.retrieval.towers import AttributeColumn, Category, attributes_of, places_in
from shortlist.training.rankers import NothingToLearnError
from shortlist.training.rows import Judged, Known
from shortlist.training.sampling import look, sweep, update

Floats = NDArray[np.float64]
Share = Callable[[float], None]

MOST_IMPRESSIONS = 4_000_000
DISCARDED, KEPT, EVERY = 50, 30, 3
"""Samples before the first that is kept, samples that are kept, and the steps between them."""
SPREAD = 0.3
"""The standard deviation of what the sampler begins with."""
SHAPE, RATE = 1.0, 0.05
"""The belief about every precision before anything is seen (gamma): deviations of a few tenths of a log-odds."""
STEPS = 8
"""Steps that a number is cut into, each with as many owners."""
SHARED_BY = 2
"""Owners that a value of an attribute must have: one that a single item has says no more than its id does."""
MOST_QUERIES = 2_048
ENERGY, MOST_DIRECTIONS = 0.999, 126
"""The share of the squared scores that the written vectors hold, and how many numbers they may have, biases aside."""


@dataclass(frozen=True)
class Impressions:
    """What was shown: users and items by index, the place on the screen, the step of the item's age, acted?"""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    place: NDArray[np.int32]
    age: NDArray[np.int32]
    acted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.acted)

    @classmethod
    def of(cls, rows: Judged, known: Known) -> Impressions:
        """The rows of users and items that have an id."""
        users, items = known.users.index_of(rows.user), known.items.index_of(rows.item)
        kept = (users >= 0) & (items >= 0)
        _, place = np.unique(np.where(np.isfinite(rows.rank), rows.rank, 0.0)[kept], return_inverse=True)
        return cls(
            users[kept],
            items[kept],
            place.astype(np.int32),
            ages_of(items[kept], rows.position[kept], rows.now[kept], known.items),
            np.ascontiguousarray(rows.gain[kept] > 0),
        )


def ages_of(
    item: NDArray[np.int32], position: NDArray[np.int64], now: NDArray[np.int64], items: Entities
) -> NDArray[np.int32]:
    """The step of each impression by how long ago its item was first shown, the newest first.

    What was there before anything was shown may be of any age: it is in the last step, with the oldest.
    """
    known = np.zeros(len(items), np.bool_)
    begun = np.full(len(items), position.min() if len(position) else 0)
    for attribute in items.attributes.values():
        known |= attribute.versions(np.arange(1, len(items) + 1, dtype=np.int32), begun) > 0
    before = int(np.flatnonzero(known).max(initial=-1)) + 1  # items stand in the order in which the log named them
    first = np.full(len(items), np.iinfo(np.int64).max)
    np.minimum.at(first, item, now)
    aged = item >= before
    age = np.log1p((now - first[item])[aged])
    edges = np.unique(np.quantile(age, np.arange(1, STEPS) / STEPS)) if len(age) else age
    edges = edges[edges > age.min(initial=0.0)]
    steps = np.full(len(item), len(edges), np.int32)
    steps[aged] = np.searchsorted(edges, age, side="right")
    return steps


@dataclass
class Described:
    """An attribute of one side: which value each owner has with which share, and the values' vectors.

    `keys` are the vocabulary or the edges; row 0 of the written table is what is unknown or missing: nothing.
    """

    keys: NDArray[Any]
    category: bool
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    shares: Floats
    table: Floats
    precision: Floats

    @classmethod
    def of(cls, column: AttributeColumn, dimensions: int) -> Described:
        """An attribute as the column of its owners."""
        if isinstance(column, Ragged):
            found, counts = np.unique(column.values, return_counts=True)
            keys: NDArray[Any] = found[(counts >= SHARED_BY) & (found != 0)]
            lengths = np.diff(column.offsets)
            owners, places = np.repeat(np.arange(len(lengths)), lengths), places_in(keys, column.values)
            shares, values = 1.0 / lengths[owners], len(keys)
        else:
            known = column[np.isfinite(column)]
            quantiles = np.quantile(known, np.arange(1, STEPS) / STEPS) if len(known) else np.empty(0)
            keys = np.unique(quantiles)
            owners, places = np.arange(len(column)), steps_of(keys, column)
            shares, values = np.ones(len(column)), len(keys) + 1
        held = np.flatnonzero(places > 0)
        order = held[np.argsort(places[held], kind="stable")]
        starts = np.searchsorted(places[order], np.arange(1, values + 2))
        table, precision = np.zeros((values, dimensions)), np.full(dimensions, 1 / SPREAD**2)
        rows = owners[order].astype(np.int32)
        return cls(keys, isinstance(column, Ragged), starts, rows, shares[order], table, precision)

    @classmethod
    def everyone(cls, owners: int, dimensions: int) -> Described:
        """What all have in common."""
        rows, starts = np.arange(owners, dtype=np.int32), np.array([0, owners])
        table, precision = np.zeros((1, dimensions)), np.full(dimensions, 1 / SPREAD**2)
        return cls(np.empty(0), True, starts, rows, np.ones(owners), table, precision)

    def add_to(self, total: Floats, sign: float = 1.0) -> None:
        """Add what the values say to every owner's vector."""
        lengths = np.diff(self.starts)
        np.add.at(total, self.rows, sign * self.shares[:, None] * np.repeat(self.table, lengths, axis=0))


@dataclass
class Half:
    """One side of the machine while it is sampled: `vectors` (n, d) have their bias last."""

    attributes: dict[str, Described]
    starts: NDArray[np.int64]
    order: NDArray[np.int64]
    vectors: Floats
    means: Floats
    prior: Floats
    precision: Floats

    @classmethod
    def of(
        cls, columns: Mapping[str, AttributeColumn], owner: NDArray[np.int32], n: int, d: int, rng: np.random.Generator
    ) -> Half:
        """A side of `n` vectors of `d` numbers; `owner` says whose each impression is."""
        attributes = {"": Described.everyone(n, d)} | {name: Described.of(held, d) for name, held in columns.items()}
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(n + 1))
        drawn = rng.normal(0.0, SPREAD, (n, d))
        return cls(attributes, starts, order, drawn, drawn.copy(), np.zeros((n, d)), np.full(d, 1 / SPREAD**2))

    def describe(self, rng: np.random.Generator) -> None:
        """Draw the vectors of the attributes' values, and how far values and ids stray."""
        rest = self.vectors - self.prior
        for held in self.attributes.values():
            noise = rng.standard_normal(held.table.shape)
            sweep(held.starts, held.rows, held.shares, rest, self.precision, held.precision, noise, held.table)
            held.precision = precision_of(held.table, rng)
        self.prior = self.vectors - rest
        self.precision = precision_of(rest, rng)


def precision_of(strays: Floats, rng: np.random.Generator) -> Floats:
    """The precision of each number of some vectors around zero, drawn."""
    return np.asarray(rng.gamma(SHAPE + len(strays) / 2, 1 / (RATE + 0.5 * (strays**2).sum(axis=0))))


@dataclass(frozen=True)
class Sample:
    """One sample of a side: everybody's vectors, and the tables of what is common to all and of the attributes."""

    vectors: Vectors
    tables: list[Vectors]

    @classmethod
    def of(cls, half: Half, vectors: Floats) -> Sample:
        """The side as it is, with these vectors."""
        return cls(vectors.astype(np.float32), [held.table.astype(np.float32) for held in half.attributes.values()])


@dataclass
class Sampler:
    """The state of the chain.

    `seen` is the probability of each place to be looked at, `base` the log-odds that each age begins with.
    """

    shown: Impressions
    users: Half
    items: Half
    seen: Floats
    rng: np.random.Generator
    base: Floats
    kept: tuple[list[Sample], list[Sample]] = field(default_factory=lambda: ([], []))
    bases: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, shown: Impressions, users: Half, items: Half, rng: np.random.Generator) -> Sampler:
        """A chain at its beginning."""
        rate = float(shown.acted.mean())
        places = int(shown.place.max()) + 1
        base = np.full(int(shown.age.max()) + 1, np.log(rate / (1 - rate)))
        return cls(shown, users, items, np.full(places, 0.5), rng, base)

    def step(self) -> None:
        """Draw everything once, given everything else."""
        shown, users, items = self.shown, self.users, self.items
        weight, rest = np.empty(len(shown)), np.empty(len(shown))
        seed = self.rng.integers(0, 2**64, dtype=np.uint64)
        # fmt: off
        look(seed, shown.user, shown.item, shown.place, shown.age, shown.acted, users.vectors, items.vectors,
             self.base, self.seen, weight, rest)
        # fmt: on
        outcome = np.where(shown.acted, 0.5, -0.5) * (weight > 0) - weight * rest
        total = np.bincount(shown.age, weight) + RATE
        self.base = np.bincount(shown.age, outcome) / total + self.rng.standard_normal(len(total)) / np.sqrt(total)
        self._see(weight > 0)
        for half, other, partners in ((users, shown.item, items), (items, shown.user, users)):
            noise = self.rng.standard_normal(half.vectors.shape)
            # fmt: off
            update(half.starts, half.order, other, shown.age, shown.acted, weight, self.base, partners.vectors,
                   half.prior, half.precision, noise, half.means, half.vectors)
            # fmt: on
            half.describe(self.rng)

    def _see(self, looked: NDArray[np.bool_]) -> None:
        """Draw how likely each place is looked at; the one with most actions per impression always is."""
        place, places = self.shown.place, len(self.seen)
        count, acted = np.bincount(place, minlength=places), np.bincount(place[self.shown.acted], minlength=places)
        looks = np.bincount(place[looked], minlength=places)
        self.seen = self.rng.beta(1.0 + looks, 1.0 + count - looks)
        self.seen[np.argmax((acted + 1) / (count + 1 / self.shown.acted.mean()))] = 1.0

    def keep(self) -> None:
        """Keep this sample: the means that the vectors were drawn around, which say the same with less noise."""
        self.kept[0].append(Sample.of(self.users, self.users.means))
        self.kept[1].append(Sample.of(self.items, self.items.means))
        self.bases.append(float(self.base[-1]))


def fit_machine(
    spec: FactorizationMachine, rows: Judged, known: Known, seed: int, step: Share
) -> tuple[Machine, dict[str, Any]]:
    """The machine, and what is to be reported. Raises NothingToLearnError where all that was shown had one outcome."""
    shown = Impressions.of(rows, known)
    acted = int(shown.acted.sum())
    if not 0 < acted < len(shown):
        raise NothingToLearnError(
            f"of {len(shown)} impressions {acted} were acted on, so nothing says what is wanted and what is not; check "
            "the labels' gains and `within`, or log impressions of items that were not acted on"
        )
    rng, dimensions = np.random.default_rng(seed), spec.dimensions + 1
    entities = ((known.users, spec.user_attributes, shown.user), (known.items, spec.item_attributes, shown.item))
    halves = [Half.of(columns_of(held, names), owner, len(held), dimensions, rng) for held, names, owner in entities]
    chain = Sampler.of(shown, halves[0], halves[1], rng)
    steps = DISCARDED + KEPT * EVERY
    for number in range(1, steps + 1):
        chain.step()
        if number > DISCARDED and (number - DISCARDED) % EVERY == 0:
            chain.keep()
        step(0.9 * number / steps)
    machine = written(spec, chain, known, seed)
    step(1.0)
    figures = {
        "impressions": len(shown),
        "impressions_left_out": rows.left_out,
        "acted_on": acted,
        "users": len(known.users),
        "items": len(known.items),
        "dimensions": machine.index.dimensions,
        "looked_at": [round(float(chance), 3) for chance in chain.seen],
        "rung": machine.index.rung,
        "index_recall": machine.index.recall,
    }
    return machine, figures


def written(spec: FactorizationMachine, chain: Sampler, known: Known, seed: int) -> Machine:
    """The mean of the samples' products as one product.

    The vectors of all samples side by side have it; of their directions as many are kept as matter. Two numbers more
    hold the biases: users end with (bias, 1), items with (1, bias).
    """
    users, items = (Joined.of(samples) for samples in chain.kept)
    turns = directions(users.factors, items.factors)
    user = side_of(users, turns[0], chain.users, known.users, spec.user_attributes, -2)
    item = side_of(items, turns[1], chain.items, known.items, spec.item_attributes, -1)
    user.start[-2] += np.float32(np.mean(chain.bases))
    user.start[-1] = item.start[-2] = 1.0
    vectors = item.vectors(
        np.arange(1, len(item.ids) + 1, dtype=np.int32), columns_of(known.items, spec.item_attributes)
    )
    places = np.sort(chain.rng.permutation(len(user.ids))[:MOST_QUERIES]).astype(np.int32) + np.int32(1)
    columns = attributes_of(known.users, spec.user_attributes, user.ids[places - 1])
    index = build_index(vectors, user.vectors(places, columns), k=spec.quota, seed=seed)
    return Machine(user, item, index)


@dataclass(frozen=True)
class Joined:
    """All samples of a side: `tables` are everybody's vectors and those of each table, shape (rows, samples, d)."""

    tables: list[Vectors]

    @classmethod
    def of(cls, samples: list[Sample]) -> Joined:
        """The samples side by side."""
        each = zip(*([sample.vectors, *sample.tables] for sample in samples), strict=True)
        return cls([np.stack(one, axis=1) for one in each])

    @property
    def factors(self) -> Vectors:
        """Every row of every table, biases left out, shape (rows, samples x (d - 1))."""
        return np.concatenate([factors_of(table) for table in self.tables])


def factors_of(table: Vectors) -> Vectors:
    """The rows of a table, samples side by side; the product of two such rows is the mean over the samples."""
    rows, samples, numbers = table.shape
    return np.asarray(table[:, :, :-1].reshape(rows, samples * (numbers - 1)) / samples**0.5, np.float32)


def directions(users: Vectors, items: Vectors) -> tuple[Floats, Floats]:
    """What turns rows of both sides so that few numbers hold their products: a singular value decomposition.

    Of the two factors of the matrix of all products, never of that matrix itself.
    """
    (root, inverse), (other_root, other_inverse) = roots(users), roots(items)
    left, values, right = np.linalg.svd(root @ other_root)
    held = np.cumsum(values**2) >= ENERGY * (values**2).sum()
    kept = min(int(np.argmax(held)) + 1, MOST_DIRECTIONS)
    scale = np.sqrt(values[:kept])
    return inverse @ left[:, :kept] * scale, other_inverse @ right[:kept].T * scale


def roots(rows: Vectors) -> tuple[Floats, Floats]:
    """The square root of the rows' Gram matrix, and its pseudoinverse."""
    values, vectors = np.linalg.eigh(np.asarray(rows.T @ rows, np.float64))
    values = np.sqrt(np.maximum(values, 0.0))
    known = values > values[-1] * 1e-5
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=known)
    return (vectors * np.where(known, values, 0.0)) @ vectors.T, (vectors * inverse) @ vectors.T


def side_of(joined: Joined, turn: Floats, half: Half, entities: Entities, names: Sequence[str], bias: int) -> Side:
    """One side as it is served; `bias` is where its bias stands."""
    turned = []
    for table in joined.tables:
        out = np.zeros((len(table), turn.shape[1] + 2), np.float32)
        out[:, :-2] = factors_of(table) @ turn
        out[:, bias] = table[:, :, -1].mean(axis=1)
        turned.append(out)
    ids, nothing = np.asarray(entities.hashes), np.zeros((len(entities) + 1, turn.shape[1] + 2), np.float32)
    attributes: dict[str, Category | Steps] = {}
    for name, table in zip(names, turned[2:], strict=True):
        held, whole = half.attributes[name], np.concatenate([nothing[:1], table])
        attributes[name] = Category(held.keys, whole) if held.category else Steps(held.keys, whole)
    side = Side(turned[1][0], ids, nothing, attributes)
    described = side.vectors(np.zeros(len(ids), np.int32), columns_of(entities, names))
    return replace(side, table=np.concatenate([nothing[:1], turned[0] - described]))


def columns_of(entities: Entities, names: Sequence[str]) -> Mapping[str, AttributeColumn]:
    """The attributes of everyone."""
    return attributes_of(entities, names, entities.hashes)
