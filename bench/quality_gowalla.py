"""Retrieval quality on Gowalla (or any folder of its format): every source alone, and their merge.

Protocol of LightGCN: all items are ranked but those of the user's train list; Recall@20 and NDCG@20, averaged over test
users. What has to be chosen, the source of the headline too, is chosen on held-out parts of train; test is looked at
once, at the end.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bench._pairs import Pairs, read_folder
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.models.item_weights import ItemWeights
from shortlist.retrieval.specs import CoVisitation, GraphFilter, HistorySpec, LinearAutoencoder, MatrixFactorisation
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.factors import fit_factors
from shortlist.training.sources.item_weights import SURE, Interactions, fit_item_weights, hits_of, ndcg_of, ndcg_of_hits

K, BLOCK = 20, 512
DATA = Path(os.environ.get("SHORTLIST_DATA", "../shared/data")) / "gowalla"
HELD_OUT = 0.2
"""The share of train by which the merge is chosen, by all of its users: as much as test has."""
FEWEST = 10
"""The users that have to be there to choose by: what fewer prefer is chance."""
LEADERS = 200
"""The best scores of a user, from which the others are measured: sources have scores of different sizes."""
NOBODY = np.float32(-1e9)
"""The score of items that no source knows."""

visit = EventType("visit", Entity("user"), Entity("place"))
history = visit.by(visit.keys[0]).last("place", 1_000)
SPECS: list[MatrixFactorisation | HistorySpec] = [
    CoVisitation(history),
    LinearAutoencoder(history),
    MatrixFactorisation(history),
    GraphFilter(history),
]
MERGED = "merged"
SHARES = (1.0, 0.5, 0.0)
"""What a source's scores may weigh in the merge."""
Shares = tuple[float, ...]
"""Of each source, in their order."""
Scores = Callable[[Any], NDArray[np.float32]]
"""Of histories, a CSR matrix (users, items), to scores of the same shape; NaN for items that the source knows not."""


def options(parser: argparse.ArgumentParser) -> None:
    """Where the data is."""
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with train.txt and test.txt [{DATA}]")


def fit(
    spec: Any, train: Pairs, items: int, earlier: Mapping[str, Any] | None = None, seed: int = 0
) -> tuple[Scores, Mapping[str, Any]]:
    """A source's scores, and its figures; `earlier` are those of a part of train, whose choices stand.

    Items stand as hashes, counted from 1. Pairs are in no order, so one is drawn.
    """
    order = np.random.default_rng(seed).permutation(len(train.user))
    user, item = (column.astype(np.uint64) + np.uint64(1) for column in (train.user, train.item))
    acts = Interactions.of(user, item, order)
    if isinstance(spec, MatrixFactorisation):
        factors, figures = fit_factors(spec, acts, seed, earlier, lambda _: None)
        return of_factors(factors, items), figures
    weights, figures = fit_item_weights(spec, acts, seed, earlier, lambda _: None)
    return of_weights(weights, items), figures


def of_weights(weights: ItemWeights, items: int) -> Scores:
    """The sums that `ItemWeights.sums` makes, of many histories at once."""
    known = (weights.items - np.uint64(1)).astype(np.int64)
    matrix = sparse.csr_matrix((weights.weights, weights.columns, weights.starts), (len(known), len(known)))

    def scores(histories: Any) -> NDArray[np.float32]:
        found = np.full((histories.shape[0], items), np.nan, np.float32)
        found[:, known] = (histories[:, known] @ matrix).toarray()
        return found

    return scores


def of_factors(factors: Factors, items: int) -> Scores:
    """The products of `Factors.user_vectors` with every item, of many histories at once."""
    known = (factors.items - np.uint64(1)).astype(np.int64)
    wanted = np.asarray(factors.index.vectors, np.float32).T

    def scores(histories: Any) -> NDArray[np.float32]:
        vectors = np.asarray(histories[:, known] @ factors.spoken)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        found = np.full((histories.shape[0], items), np.nan, np.float32)
        found[:, known] = vectors @ wanted
        return found

    return scores


def popularity(train: Pairs, items: int) -> Scores:
    """The same for everyone."""
    counts = np.bincount(train.item, minlength=items).astype(np.float32)
    return lambda histories: np.repeat(counts[None, :], histories.shape[0], axis=0)


def standard(scores: NDArray[np.float32], known: Any) -> NDArray[np.float32]:
    """Scores in deviations from the mean of the user's best ones that are not known."""
    fresh = np.where(known.toarray() > 0, np.nan, scores)  # NaN comes last in every order
    most = min(LEADERS, fresh.shape[1])
    leaders = np.ma.masked_invalid(-np.partition(-fresh, most - 1, axis=1)[:, :most])
    mean, spread = (of(axis=1, keepdims=True).filled(1.0) for of in (leaders.mean, leaders.std))
    return np.asarray((scores - mean) / np.maximum(spread, 1e-9), np.float32)


def merged(scores: Collection[NDArray[np.float32]], shares: Collection[float]) -> NDArray[np.float32]:
    """What sources say of each item, weighed. One that does not know an item says nothing of it, good or bad."""
    total, said = (np.zeros(next(iter(scores)).shape, np.float32) for _ in range(2))
    for one, share in zip(scores, shares, strict=True):
        if share:
            total += np.float32(share) * np.nan_to_num(one)
            said += np.float32(share) * ~np.isnan(one)
    return np.where(said > 0, total / np.maximum(said, np.float32(1e-9)), NOBODY)


def measure(
    parts: Mapping[str, Scores], merges: Collection[Shares], train: Any, test: Any, users: NDArray[np.int64]
) -> dict[Shares, NDArray[np.float64]]:
    """Recall@20 and NDCG@20 of every user, shape (2, users), of sources merged by shares."""
    found: dict[Shares, list[NDArray[np.float64]]] = {shares: [] for shares in merges}
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        known, relevant = train[block], test[block]
        scores = [standard(of(known), known) for of in parts.values()]
        for shares, judged in found.items():
            judged.append(np.stack(judge(merged(scores, shares), known, relevant)))
    return {shares: np.concatenate(judged, axis=1) for shares, judged in found.items()}


def judge(scores: NDArray[np.float32], known: Any, relevant: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall@20 and NDCG@20 of each user."""
    recall = hits_of(scores, known, relevant, K).sum(axis=1) / np.diff(relevant.indptr)
    return np.asarray(recall, np.float64), ndcg_of(scores, known, relevant, K)


def choose(parts: Collection[str], found: Mapping[Shares, NDArray[np.float64]]) -> Shares:
    """The share of each source: at first all have the same, then one after the other is halved, or goes.

    `found` is NDCG@20 of each user by every merge, on what was held out. What leaves most is lowered, until that falls
    surely below the best so far (95 %, one-sided): a share has to prove itself. None is finer, because shares that
    are chosen fit the part that chose them.
    """
    shares: Shares = (SHARES[0],) * len(parts)
    best = found[shares]
    print(f"  NDCG@{K} on what {len(best)} users held out: {best.mean():.4f} by {named(parts, shares)}", flush=True)
    while lower := [each for each in lowered(shares) if each in found]:
        leaves_most = max(lower, key=lambda each: float(found[each].mean()))
        loss = best - found[leaves_most]
        surely = loss.mean() > SURE * loss.std(ddof=1) / len(loss) ** 0.5
        shown = f"{found[leaves_most].mean():.4f} by {named(parts, leaves_most)}"
        print(f"    {shown}{', surely less' if surely else ''}", flush=True)
        if surely:
            break
        shares, best = leaves_most, max(best, found[leaves_most], key=lambda each: float(each.mean()))
    return shares


def held_out_ndcg(
    parts: Mapping[str, Scores], known: Any, held: Any, users: NDArray[np.int64]
) -> dict[Shares, NDArray[np.float64]]:
    """NDCG@20 of each user by every merge, of the items that lead in some source: others hardly ever would."""
    found: dict[Shares, list[NDArray[np.float64]]] = {
        shares: [] for shares in product(SHARES, repeat=len(parts)) if SHARES[0] in shares
    }
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        histories, relevant = known[block], held[block]
        scores = [standard(of(histories), histories) for of in parts.values()]
        leaders = np.sort(np.hstack([leading(one, histories) for one in scores]), axis=1)
        again = np.pad(leaders[:, 1:] == leaders[:, :-1], ((0, 0), (1, 0)))
        near = [np.take_along_axis(one, leaders, axis=1) for one in scores]
        seen, wanted = (np.take_along_axis(of.toarray(), leaders, axis=1) for of in (histories, relevant))
        hidden, among = sparse.csr_matrix(again | (seen > 0)), sparse.csr_matrix(wanted)
        for shares, judged in found.items():
            hits = hits_of(merged(near, shares), hidden, among, K)
            judged.append(ndcg_of_hits(hits, np.diff(relevant.indptr)))
    return {shares: np.concatenate(judged) for shares, judged in found.items()}


def leading(scores: NDArray[np.float32], known: Any) -> NDArray[np.intp]:
    """The items with a user's best scores that are not known, in no order, shape (users, LEADERS)."""
    fresh = np.where(known.toarray() > 0, -np.inf, np.nan_to_num(scores, nan=-np.inf))
    most = min(LEADERS, fresh.shape[1])
    return np.argpartition(-fresh, most - 1, axis=1)[:, :most]


def lowered(shares: Shares) -> list[Shares]:
    """Each share that can be lowered by a step, all else as it is."""
    steps = dict(pairwise(SHARES))
    return [(*shares[:at], steps[share], *shares[at + 1 :]) for at, share in enumerate(shares) if share in steps]


def alone(parts: Collection[str]) -> dict[str, Shares]:
    """The shares by which a source stands for itself, of each one."""
    return {name: tuple(float(name == other) for other in parts) for name in parts}


def named(parts: Iterable[str], shares: Shares) -> dict[str, float]:
    """The sources that have a share, with it."""
    return {name: share for name, share in zip(parts, shares, strict=True) if share}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Choose on train, fit on train, measure on test."""
    train, test, shape = read_folder(arguments.data)
    rng = np.random.default_rng(0)
    held = rng.random(len(train.user)) < HELD_OUT
    known, relevant = train.take(~held).matrix(shape), train.take(held).matrix(shape)
    able = np.flatnonzero((np.diff(relevant.indptr) > 0) & (np.diff(known.indptr) > 0))
    if len(able) < FEWEST:
        raise SystemExit(
            f"{arguments.data / 'train.txt'}: of {shape[0]} users {len(able)} have items both to learn from and to "
            f"hold out, which has to be {FEWEST} at least; give more users, or more items of each"
        )
    asked = np.flatnonzero(np.diff(test.matrix(shape).indptr))
    if arguments.quick:
        asked = np.sort(rng.permutation(asked)[:2_000])
    specs = SPECS[:2] if arguments.quick else SPECS
    parts, chosen = {}, {}
    for spec in specs:
        try:
            parts[spec.name], chosen[spec.name] = fit(spec, train.take(~held), shape[1])
        except NothingToLearnError as error:
            raise SystemExit(f"{arguments.data / 'train.txt'}: {error}; give more items of each user") from error
        print(f"  {spec.name} fitted on four fifths of train: {chosen[spec.name]}", flush=True)
    by_merge = held_out_ndcg(parts, known, relevant, able)
    merge = choose(parts, by_merge)
    reached = {name: float(by_merge[shares].mean()) for name, shares in (alone(parts) | {MERGED: merge}).items()}
    best = max(reached, key=lambda name: reached[name])
    shown = ", ".join(f"{name} {ndcg:.4f}" for name, ndcg in reached.items())
    print(f"  held out: {shown}; the headline is {best}, whatever test says", flush=True)
    parts.clear()
    fitted: dict[str, Scores] = {"popular": popularity(train, shape[1])}
    figures: dict[str, dict[str, Any]] = {"popular": {"fit_s": 0.0}}
    for spec in specs:
        begun = time.perf_counter()
        fitted[spec.name], found = fit(spec, train, shape[1], chosen[spec.name])
        seconds = round(time.perf_counter() - begun, 1)
        plain = {name: value for name, value in found.items() if isinstance(value, float | int | str)}
        figures[spec.name] = {"fit_s": seconds, **plain}
    of = named(chosen, merge)
    figures[MERGED] = {"fit_s": round(sum(figures[name]["fit_s"] for name in of), 1), "of": of}
    wanted = alone(fitted) | {MERGED: (0.0, *merge)}
    judged = measure(fitted, wanted.values(), train.matrix(shape), test.matrix(shape), asked)
    for name, shares in wanted.items():
        recall, ndcg = judged[shares].mean(axis=1).tolist()
        figures[name] = {"recall_20": round(recall, 4), "ndcg_20": round(ndcg, 4), **figures[name]}
        print(f"  {name:22} {recall:.4f} {ndcg:.4f}   {figures[name]}", flush=True)
    return {
        "recall_20": figures[best]["recall_20"],
        "ndcg_20": figures[best]["ndcg_20"],
        "source": best,
        MERGED: {name: figures[MERGED][name] for name in ("recall_20", "ndcg_20")},
        "users": len(asked),
        "sources": figures,
    }
