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
All that users do with what they looked at depends on the same product, each kind by a base and a scale of its own:
whether what was acted on went on to a greater gain, how much of it there was (the logarithm of an amount, normal), and
whether what was not acted on was rejected, which also says that it was looked at. So all outcomes of a pair of a user
and an item add up to one weighted observation of its product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.retrieval.models.machine import Machine, Side, Steps
from shortlist.retrieval.models.towers import AttributeColumn, Category, attributes_of
from shortlist.retrieval.specs import FactorizationMachine
from shortlist.retrieval.vectors.index import Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.rows import Judged, Known
from shortlist.training.sources.machine_data import SPREAD, Described, Floats, Outcomes, columns_of
from shortlist.training.sources.sampling import BLOCK, fold, look, sweep, update

Share = Callable[[float], None]

MOST_IMPRESSIONS = 12_000_000
DISCARDED, KEPT, EVERY = 50, 30, 3
"""Samples before the first that is kept, samples that are kept, and the steps between them."""
SHAPE, RATE = 1.0, 0.05
"""The belief about every precision before anything is seen (gamma): deviations of a few tenths of a log-odds."""
MOST_QUERIES = 2_048
ENERGY, MOST_DIRECTIONS = 0.999, 126
"""The share of the squared scores that the written vectors hold, and how many numbers they may have, biases aside."""


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

    `seen` is the probability of each place to be looked at; the log-odds of each group of outcomes are its `base` and
    the product of the vectors times its `scale`, which is 1 for impressions; of amounts that is the expected
    logarithm, and `noise` the precision around it. `further` are the number of such outcomes and their sum of squares.
    """

    shown: Outcomes
    users: Half
    items: Half
    seen: Floats
    rng: np.random.Generator
    base: Floats
    scale: Floats
    noise: Floats
    further: tuple[Floats, Floats]
    kept: tuple[list[Sample], list[Sample]] = field(default_factory=lambda: ([], []))
    bases: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, shown: Outcomes, users: Half, items: Half, rng: np.random.Generator) -> Sampler:
        """A chain at its beginning."""
        groups = len(shown.measured)
        said, group = shown.further, shown.further_group
        counts, sums, squares = (np.bincount(group, each, groups) for each in (None, said, said**2))
        count = np.bincount(shown.group, minlength=groups) + counts
        acted = np.bincount(shown.group, shown.acted, groups) + sums + 0.5 * counts
        if shown.against >= 0:
            count[shown.against], acted[shown.against] = (~shown.acted).sum(), shown.rejected.sum()
        base = np.log((acted + 0.5) / (count - acted + 0.5), where=~shown.measured, out=np.zeros(groups))
        base[shown.measured] = (sums / np.maximum(counts, 1))[shown.measured]
        scale = np.where(np.arange(groups) < shown.ages, 1.0, 0.0)
        seen = np.full(int(shown.place.max()) + 1, 0.5)
        return cls(
            shown,
            users,
            items,
            seen,
            rng,
            base,
            scale,
            np.ones(groups),
            (np.asarray(counts, np.float64), np.asarray(squares, np.float64)),
        )

    def step(self) -> None:
        """Draw everything once, given everything else."""
        shown, users, items = self.shown, self.users, self.items
        pairs, blocks = len(shown.user), (len(shown.user) + BLOCK - 1) // BLOCK
        weights = (np.empty(len(shown.acted)), np.empty(len(shown.acted)), np.empty(len(shown.further)))
        product, weight, outcome = np.empty(pairs), np.empty(pairs), np.empty(pairs)
        sums, looks = np.empty((blocks, len(self.base), 5)), np.empty((blocks, len(self.seen)), np.int64)
        seed = self.rng.integers(0, 2**64, dtype=np.uint64)
        # fmt: off
        look(seed, shown, users.vectors, items.vectors, self.base, self.scale, self.noise, self.seen,
             weights, product, sums, looks)
        # fmt: on
        self._regress(sums.sum(axis=0).T)
        self._see(looks.sum(axis=0))
        fold(shown, self.base, self.scale, weights, weight, outcome)
        for half, other, partners in ((users, shown.item, items), (items, shown.user, users)):
            noise = self.rng.standard_normal(half.vectors.shape)
            # fmt: off
            update(half.starts, half.order, other, weight, outcome, partners.vectors, half.prior, half.precision,
                   noise, half.means, half.vectors)
            # fmt: on
            half.describe(self.rng)

    def _regress(self, sums: Floats) -> None:
        """Draw base and scale of each group of outcomes, and how far amounts stray."""
        shown, groups = self.shown, len(self.base)
        weight, line, square, outcome, right = sums
        noise = self.rng.standard_normal((2, groups))
        total = weight + RATE
        self.base = (outcome - self.scale * line) / total + noise[0] / np.sqrt(total)
        total = square + 1.0  # before anything is seen: normal around 1 for going further, around nothing for others
        before = np.where(shown.measured | (np.arange(groups) == shown.against), 0.0, 1.0)
        scale = (right - self.base * line + before) / total + noise[1] / np.sqrt(total)
        self.scale[shown.ages :] = scale[shown.ages :]
        for group in np.flatnonzero(shown.measured):
            count, squares = self.further[0][group], self.further[1][group]
            b, s = self.base[group], self.scale[group]
            crossed = 2 * (b * outcome[group] + s * right[group]) - 2 * b * s * line[group]
            fitted = b**2 * weight[group] + s**2 * square[group]
            left = squares + (fitted - crossed) / self.noise[group]
            self.noise[group] = self.rng.gamma(SHAPE + count / 2, 1 / (RATE + 0.5 * left))

    def _see(self, looks: NDArray[np.int64]) -> None:
        """Draw how likely each place is looked at; the one with most actions per impression always is."""
        place, acted = self.shown.place, self.shown.acted
        times, acts = np.bincount(place), np.bincount(place[acted], minlength=len(looks))
        self.seen = self.rng.beta(1.0 + looks, 1.0 + times - looks)
        self.seen[np.argmax((acts + 1) / (times + 1 / acted.mean()))] = 1.0

    def keep(self) -> None:
        """Keep this sample: the means that the vectors were drawn around, which say the same with less noise."""
        self.kept[0].append(Sample.of(self.users, self.users.means))
        self.kept[1].append(Sample.of(self.items, self.items.means))
        self.bases.append(float(self.base[self.shown.ages - 1]))


def fit_machine(
    spec: FactorizationMachine, rows: Judged, known: Known, seed: int, step: Share, against: Sequence[str] = ()
) -> tuple[Machine, dict[str, Any]]:
    """The machine, and what is to be reported; `against` are the kinds of actions that reject an item.

    Raises NothingToLearnError where all that was shown had one outcome.
    """
    shown = Outcomes.of(rows, known, against)
    acted, impressions = int(shown.acted.sum()), len(shown.acted)
    if not 0 < acted < impressions:
        raise NothingToLearnError(
            f"of {impressions} impressions {acted} were acted on, so nothing says what is wanted and what not; "
            "check the labels' gains and `within`, or log impressions of items that were not acted on"
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
        "impressions": impressions,
        "impressions_left_out": rows.left_out,
        "acted_on": acted,
        "rejected": int(shown.rejected.sum()),
        "users": len(known.users),
        "items": len(known.items),
        "dimensions": machine.index.dimensions,
        "looked_at": [round(float(chance), 3) for chance in chain.seen],
        "scale": [round(float(one), 3) for one in chain.scale[shown.ages :]],
        "spread": [round(float(one) ** -0.5, 3) for one in chain.noise[shown.measured]],
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
