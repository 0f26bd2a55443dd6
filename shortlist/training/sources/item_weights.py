"""Fitting item-item weights: co-visitation, the linear autoencoder, the graph filter.

All three look at who acted on what, once each, and nothing else. What has to be chosen is chosen on the newest actions
of some users, which are held out; a setting other than the default one has to prove itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shortlist.features.hashing import Hashes
from shortlist.retrieval.models.item_weights import ItemWeights
from shortlist.retrieval.specs import CoVisitation, GraphFilter, LinearAutoencoder
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.autoencoder import Sparse, regressions
from shortlist.training.sources.graph import PROLIFIC, PROLIFICS, SETTING, Graph, Matrix

Figures = Mapping[str, Any]
Share = Callable[[float], None]

HELD_OUT, FEWEST, MOST_ASKED, DEPTH = 0.1, 5, 2_000, 20
"""The share of a user's actions that is held out, of users with so many at least, of so many users at most; NDCG@."""
SURE = 1.645
"""Standard errors by which a setting must be better than the default one to be chosen: 95 %, one-sided. One error would
not do: of three settings that are no better than the default one, some one is that far ahead every third time."""
RIDGE, RIDGES = 100.0, (30.0, 100.0, 300.0, 1000.0)
"""The default ridge, and those that it has to beat."""
POPULARITY, POPULARITIES = 0.5, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""The exponent by which co-visitation holds back what is popular, by default, and those that it has to beat."""
BLOCK, ASKED_AT_ONCE = 1_024, 128
NO_COLUMNS, NO_VALUES = np.empty(0, np.int32), np.empty(0, np.float32)


@dataclass(frozen=True)
class Interactions:
    """Distinct pairs of a user's number and an item's, oldest first; `items` are the hashes of the items, sorted."""

    users: int
    items: Hashes
    user: NDArray[np.int64]
    item: NDArray[np.int64]

    @classmethod
    def of(cls, users: Hashes, items: Hashes, position: NDArray[np.int64]) -> Interactions:
        """From actions (hashes, and where in the log they stand); a pair stands where it was first."""
        order = np.argsort(position, kind="stable")
        known, user = np.unique(users[order], return_inverse=True)
        vocabulary, item = np.unique(items[order], return_inverse=True)
        _, first = np.unique(user * max(len(vocabulary), 1) + item, return_index=True)
        first.sort()
        return cls(len(known), vocabulary, user[first], item[first])

    def __len__(self) -> int:
        return len(self.user)

    def most_frequent(self, most: int) -> Interactions:
        """Those of the `most` most frequent items only; ties in order of hash."""
        if len(self.items) <= most:
            return self
        counts = np.bincount(self.item, minlength=len(self.items))
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        row = np.full(len(self.items), -1)
        row[kept] = np.arange(most)
        part = row[self.item] >= 0
        return Interactions(self.users, self.items[kept], self.user[part], row[self.item[part]])

    def matrix(self, part: NDArray[np.bool_] | None = None) -> Sparse:
        """Ones, shape (users, items)."""
        user, item = (self.user, self.item) if part is None else (self.user[part], self.item[part])
        shape = (self.users, len(self.items))
        return sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape)


@dataclass(frozen=True)
class Exam:
    """Settings are judged here: some users' older actions `known`, and their newest ones, `held`; rows are users."""

    learned: Sparse
    known: Sparse
    held: Sparse

    @classmethod
    def of(cls, acts: Interactions, seed: int) -> Exam:
        """The newest tenth of the actions of some users is held out."""
        counts = np.bincount(acts.user, minlength=acts.users)
        order = np.argsort(acts.user, kind="stable")
        starts = np.cumsum(counts) - counts
        newest = np.empty(len(acts), np.int64)
        newest[order] = np.repeat(starts + counts, counts) - np.arange(len(acts)) - 1  # 0 = a user's newest
        able = np.flatnonzero(counts >= FEWEST)
        asked = np.sort(np.random.default_rng(seed).permutation(able)[:MOST_ASKED])
        held = np.isin(acts.user, asked) & (newest < np.ceil(HELD_OUT * counts)[acts.user])
        learned = acts.matrix(~held)
        return cls(learned, learned[asked], acts.matrix(held)[asked])

    def ndcg(self, scores: Callable[[Sparse], Mapping[Any, Matrix]], step: Share) -> dict[Any, NDArray[np.float64]]:
        """NDCG@20 of every user under every setting; `scores` says for some users what each setting thinks of items."""
        found: dict[Any, list[NDArray[np.float64]]] = {}
        for start in range(0, self.known.shape[0], ASKED_AT_ONCE):
            part = slice(start, start + ASKED_AT_ONCE)
            known, held = self.known[part], self.held[part]
            for setting, matrix in scores(known).items():
                found.setdefault(setting, []).append(ndcg_of(matrix, known, held))
            step(start / self.known.shape[0])
        return {setting: np.concatenate(parts) for setting, parts in found.items()}


def ndcg_of(scores: Matrix, known: Sparse, held: Sparse, depth: int = DEPTH) -> NDArray[np.float64]:
    """NDCG@depth of each row, all items ranked but the known ones; NaN where nothing is held out."""
    return ndcg_of_hits(hits_of(scores, known, held, depth), np.diff(held.indptr))


def ndcg_of_hits(hits: Matrix, wanted: NDArray[Any]) -> NDArray[np.float64]:
    """NDCG of each row of hits, best first, where so many items are wanted in all; NaN where none is."""
    discounts = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discounts)])[np.minimum(wanted, hits.shape[1])]
    return np.asarray(hits @ discounts / ideal)


def hits_of(scores: Matrix, known: Sparse, held: Sparse, depth: int) -> Matrix:
    """1 for each of the first `depth` items of a row, the known ones left out, that is held out, best first."""
    scores = scores.copy()
    scores[known.nonzero()] = -np.inf
    depth = min(depth, scores.shape[1])
    top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable"), 1)
    return np.asarray(np.take_along_axis(held.toarray(), top, 1), np.float32)


def proven(found: Mapping[Any, NDArray[np.float64]], default: Any) -> Any:
    """The best setting, where it beats the default one by more than chance; else the default."""
    measured = {setting: values[~np.isnan(values)] for setting, values in found.items()}
    if len(measured.get(default, ())) < 2:
        return default
    best = max(measured, key=lambda setting: float(measured[setting].mean()))
    gain = measured[best] - measured[default]
    return best if gain.mean() > SURE * gain.std(ddof=1) / len(gain) ** 0.5 else default


def chosen_prolific(
    exam: Exam, fit: Callable[[float], Callable[[Sparse], Matrix]], step: Share
) -> tuple[float, dict[str, float]]:
    """The exponent by which users of many items are held back, and what each one reaches.

    `fit` makes of an exponent what says of some users' histories how much each item is wanted.
    """
    found: dict[Any, NDArray[np.float64]] = {}
    for number, each in enumerate(PROLIFICS, 1):
        found |= exam.ndcg(_alone(each, fit(each)), lambda _: None)
        step(number / len(PROLIFICS))
    reached = {f"prolific {each}": float(np.nanmean(values)) for each, values in found.items()}
    return proven(found, PROLIFIC), reached


def _alone(setting: float, answers: Callable[[Sparse], Matrix]) -> Callable[[Sparse], Mapping[float, Matrix]]:
    """One setting's answers, as an exam takes them; nothing of them outlives it, for they may be large."""
    return lambda known: {setting: answers(known)}


def fit_item_weights(
    spec: Any, acts: Interactions, seed: int, earlier: Figures | None, step: Share
) -> tuple[ItemWeights, Figures]:
    """The weights that `spec` declares, and what is to be reported. `earlier`: those figures of a shorter past.

    Raises NothingToLearnError where nobody acted on two items.
    """
    if not len(acts) or np.bincount(acts.user).max() < 2:
        raise NothingToLearnError("no user acted on two items, so no item says anything of another")
    acts = acts.most_frequent(getattr(spec, "most_items", len(acts.items)))
    kept, figures = fit_rows(spec, acts, seed, earlier, step)
    weights = ItemWeights(acts.items, *kept.joined())
    step(1.0)
    return weights, {"items": len(acts.items), "pairs": len(acts), "weights": len(weights.weights), **figures}


class Kept(NamedTuple):
    """The columns and weights of each row."""

    columns: list[NDArray[np.int32]]
    values: list[NDArray[np.float32]]

    @classmethod
    def of(cls, matrix: Sparse) -> Kept:
        """Every entry of a CSR matrix."""
        return cls(*(np.split(entries, matrix.indptr[1:-1]) for entries in (matrix.indices, matrix.data)))

    def keep(self, columns: NDArray[Any], values: NDArray[np.float32], neighbours: int) -> None:
        """Append a row: so many of the weights, those that are greatest in size."""
        if len(columns) > neighbours:
            chosen = np.sort(np.argpartition(-np.abs(values), neighbours - 1)[:neighbours])
            columns, values = columns[chosen], values[chosen]
        self.columns.append(columns.astype(np.int32))
        self.values.append(np.ascontiguousarray(values, np.float32))

    def matrix(self, width: int) -> Sparse:
        """The weights as a CSR matrix with so many columns."""
        starts, columns, values = self.joined()
        return sparse.csr_matrix((values, columns, starts), (len(self.columns), width))

    def joined(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Where each row starts, and one behind the last; the columns and the weights of all, row after row."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in self.columns])]).astype(np.int64)
        columns, values = np.concatenate([NO_COLUMNS, *self.columns]), np.concatenate([NO_VALUES, *self.values])
        return starts, columns, values


@singledispatch
def fit_rows(
    spec: object,
    acts: Interactions,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    earlier: Figures | None,  # noqa: ARG001
    step: Share,  # noqa: ARG001
) -> tuple[Kept, Figures]:
    """The rows of the matrix, and what was chosen."""
    raise TypeError(f"no item weights are fitted by {spec!r}")


@fit_rows.register
def _(spec: CoVisitation, acts: Interactions, seed: int, earlier: Figures | None, step: Share) -> tuple[Kept, Figures]:
    popularity, figures = spec.popularity, {}
    if popularity is None and earlier is not None:
        popularity = float(earlier["popularity"])
    elif popularity is None:
        exam = Exam.of(acts, seed)
        asked = np.unique(exam.known.indices)
        tried = covisits(exam.learned, asked, POPULARITIES, spec.neighbours, lambda share: step(0.4 * share))
        weights = {each: kept.matrix(len(acts.items)) for each, kept in tried.items()}

        def scores(known: Sparse) -> Mapping[float, Matrix]:
            return {each: (known[:, asked] @ of).toarray() for each, of in weights.items()}

        found = exam.ndcg(scores, lambda share: step(0.4 + 0.4 * share))
        popularity = proven(found, POPULARITY)
        figures = {"ndcg@20": {str(each): float(np.nanmean(values)) for each, values in found.items()}}
    every = np.arange(len(acts.items))
    kept = covisits(acts.matrix(), every, [popularity], spec.neighbours, lambda share: step(0.8 + 0.2 * share))
    return kept[popularity], {"popularity": popularity, **figures}


def covisits(
    matrix: Sparse, items: NDArray[Any], popularities: Sequence[float], neighbours: int, step: Share
) -> Mapping[float, Kept]:
    """The items nearest to each of some, and how near they are, for several exponents of popularity."""
    graph, kept = Graph.of(matrix), {each: Kept([], []) for each in popularities}
    scales = {each: np.asarray(graph.root ** (1 - 2 * each), np.float32) for each in popularities}  # of the cosine
    for start in range(0, len(items), BLOCK):
        block = items[start : start + BLOCK]
        product = (graph.back[block] @ graph.forth).tocsr()
        for row, item in enumerate(block):
            part = slice(product.indptr[row], product.indptr[row + 1])
            others = product.indices[part] != item
            columns, values = product.indices[part][others], product.data[part][others]
            for each, scale in scales.items():
                kept[each].keep(columns, values * scale[columns], neighbours)
        step(start / len(items))
    return kept


@fit_rows.register
def _(
    spec: LinearAutoencoder, acts: Interactions, seed: int, earlier: Figures | None, step: Share
) -> tuple[Kept, Figures]:
    ridge, figures = spec.ridge, {}
    if ridge is None and earlier is not None:
        ridge = float(earlier["ridge"])
    elif ridge is None:
        exam = Exam.of(acts, seed)
        tried = autoencoder(exam.learned, spec.neighbours, RIDGES, lambda share: step(0.6 * share))

        def scores(known: Sparse) -> Mapping[float, Matrix]:
            return {each: (known @ of).toarray() for each, of in tried.items()}

        found = exam.ndcg(scores, lambda share: step(0.6 + 0.2 * share))
        ridge = proven(found, RIDGE)
        figures = {"ndcg@20": {str(each): float(np.nanmean(values)) for each, values in found.items()}}
    weights = autoencoder(acts.matrix(), spec.neighbours, [ridge], lambda share: step(0.8 + 0.2 * share))
    return Kept.of(weights[ridge]), {"ridge": ridge, **figures}


def autoencoder(matrix: Sparse, neighbours: int, ridges: Sequence[float], step: Share) -> Mapping[float, Sparse]:
    """For every ridge the weights of each item as a regression on its so many nearest by co-visitation."""
    items = matrix.shape[1]
    near = covisits(matrix, np.arange(items), [POPULARITY], neighbours, lambda share: step(0.2 * share))
    return regressions(matrix, near[POPULARITY].matrix(items), ridges, lambda share: step(0.2 + 0.8 * share))


@fit_rows.register
def _(spec: GraphFilter, acts: Interactions, seed: int, earlier: Figures | None, step: Share) -> tuple[Kept, Figures]:
    figures: dict[str, Any] = {}
    if earlier is not None:
        prolific, low_pass, sharpness = (float(earlier[name]) for name in ("prolific", "low_pass", "sharpness"))
    else:
        exam = Exam.of(acts, seed)
        graphs = {each: Graph.of(exam.learned, spec.rank, seed, each) for each in PROLIFICS}
        prolific, judged = chosen_prolific(exam, lambda each: graphs[each].answers, lambda share: step(0.15 * share))
        found = exam.ndcg(graphs[prolific].settings, lambda share: step(0.15 + 0.15 * share))
        low_pass, sharpness = proven(found, SETTING)
        figures["ndcg@20"] = judged | {f"{a} {b}": float(np.nanmean(values)) for (a, b), values in found.items()}
    graph = Graph.of(acts.matrix(), spec.rank, seed, prolific)
    kept = Kept([], [])
    for rows in graph.weights(low_pass, sharpness):
        part = _strongest(rows, spec.neighbours)
        kept.columns.extend(part.columns)
        kept.values.extend(part.values)
        step(0.3 + 0.7 * len(kept.columns) / len(acts.items))
    return kept, {"prolific": prolific, "low_pass": low_pass, "sharpness": sharpness, **figures}


def _strongest(rows: Matrix, neighbours: int) -> Kept:
    """The weights of each row that are greatest in size."""
    kept = Kept([], [])
    for row in rows:
        columns = np.flatnonzero(row)
        kept.keep(columns, row[columns], neighbours)
    return kept
