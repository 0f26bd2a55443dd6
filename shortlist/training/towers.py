"""Fitting the two towers: in-batch sampled softmax with the logQ correction, stopped on the newest positives.

Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019. The other
positives of a batch are the negatives of each; popular items are among them more often, so the log of each item's
frequency is subtracted from its logits. An item that is the same as the positive, or that the same user liked, is no
negative and is masked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shortlist.features.entities import Ragged
from shortlist.features.hashing import Hashes
from shortlist.retrieval.index import Vectors
from shortlist.retrieval.ladder import build_index
from shortlist.retrieval.specs import TwoTower
from shortlist.retrieval.towers import (
    FACTS,
    HISTORY,
    INDEX,
    USER_MODEL,
    USERS,
    VOCABULARY,
    AttributeColumn,
    Scaling,
    places_in,
)
from shortlist.training.tower_model import SPARSE_FROM, Bags, Side, Tower, TwoTowers, write_onnx

Progress = Callable[[str, float], None]
"""Told the step that runs and the share of it that is done, from 0 to 1."""
HELD_OUT, MOST_HELD_OUT = 0.1, 2_048
RECALL_AT, PATIENCE = 100, 2
UNKNOWN_USER = 0.5
"""The share of training rows whose user id is hidden, so that newcomers get a vector that was learned for them."""
UNIFORM = 0.5
"""Items drawn uniformly as further negatives, per positive (mixed negative sampling; Yang et al., WWW 2020): without
them nobody ever learns that an item which no one acted on is not wanted."""
HISTORY_KEPT = 0.5
"""The share of the places of the history that a batch looks at, so that no single item decides; and it is faster."""
WEIGHT_DECAY = 0.01
OLD_SHARE, HALF_AGE = 0.1, 0.1
BLOCK = 4_096


@dataclass(frozen=True)
class TowerExamples:
    """n positives: who acted on what, and what was known of them strictly before.

    `user` and `item` are hashes, shape (n,); `history` hashes of items, newest first, shape (n, h), 0 where it is
    shorter; `at` ms UTC; `columns` the user attributes and context values of the spec, n rows each.
    """

    user: Hashes
    history: NDArray[Any]
    item: Hashes
    at: NDArray[np.int64]
    columns: Mapping[str, AttributeColumn]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class TowerItems:
    """The m items that can be retrieved: their hashes, each once, and the item attributes of the spec, m rows each."""

    hashes: Hashes
    columns: Mapping[str, AttributeColumn]


@dataclass(frozen=True)
class TowerReport:
    """What came of it. `recall` is recall@`recall_at` on the newest positives, NaN where none were held out."""

    epochs: int
    recall: float
    recall_at: int
    examples: int
    items: int
    rung: str
    index_recall: float
    index_reached: bool


@dataclass(frozen=True)
class Encoding:
    """How raw columns become a tower's inputs: the sorted vocabulary of each category, the scaling of each number."""

    ids: Hashes
    values: Mapping[str, Hashes]
    scalings: Mapping[str, Scaling]

    @classmethod
    def of(cls, ids: Hashes, columns: Mapping[str, AttributeColumn]) -> Encoding:
        """The encoding that some rows need."""
        values = {name: _distinct(column.values) for name, column in columns.items() if isinstance(column, Ragged)}
        scalings = {name: _scaling(column) for name, column in columns.items() if not isinstance(column, Ragged)}
        return cls(_distinct(ids), values, scalings)

    def encode(self, ids: Hashes, columns: Mapping[str, AttributeColumn]) -> Side:
        """Rows as inputs."""
        bags, numbers = {}, [np.empty((len(ids), 0), np.float32)]
        for name, column in columns.items():
            if isinstance(column, Ragged):
                bags[name] = _bags(places_in(self.values[name], column.values), column.offsets)
            else:
                numbers.append(self.scalings[name].apply(column))
        return Side(torch.from_numpy(places_in(self.ids, ids)), bags, torch.from_numpy(np.concatenate(numbers, axis=1)))


@dataclass
class Fitting:
    """The model and its data, as tensors; `log_q` is the log frequency of each item's place among positives."""

    spec: TwoTower
    model: TwoTowers
    users: Side
    history: Tensor
    items: Side
    positive: Tensor
    log_q: Tensor
    weight: Tensor
    generator: torch.Generator

    def loss(self, rows: Tensor) -> Tensor:
        """The sampled softmax of one batch."""
        known, positive = self.users.take(rows), self.positive[rows]
        hidden = torch.rand(len(rows), generator=self.generator) < UNKNOWN_USER
        user = Side(known.id.masked_fill(hidden, 0), known.bags, known.numbers)
        size = (int(UNIFORM * len(rows)),)
        uniform = torch.randint(len(self.items.id), size, generator=self.generator)
        distinct, place = torch.unique(torch.cat([positive, uniform]), return_inverse=True)
        place = place[: len(rows)]
        vectors = self.model.item_vectors(self.items.take(distinct))
        length = self.history.shape[1]
        kept = torch.randperm(length, generator=self.generator)[: math.ceil(length * HISTORY_KEPT)]
        logits = self.model.user_vectors(user, self.history[rows][:, kept], kept) @ vectors.T / self.spec.temperature
        # each distinct item stands once for all its occurrences in the batch: Q is its probability to be there at all
        logits = logits - self.log_q[distinct]
        same_user, other = ((known.id[:, None] == known.id) & (known.id > 0)).nonzero(as_tuple=True)
        liked = torch.zeros(len(rows), len(distinct), dtype=torch.bool)
        liked[same_user, place[other]] = True
        liked[torch.arange(len(rows)), place] = False
        losses = functional.cross_entropy(logits.masked_fill(liked, -math.inf), place, reduction="none")
        return (losses * self.weight[rows]).mean()

    def item_vectors(self) -> Tensor:
        """Every item's vector, shape (m, d)."""
        with torch.no_grad():
            rows = torch.arange(len(self.items.id))
            return torch.cat([self.model.item_vectors(self.items.take(part)) for part in parts_of(rows, BLOCK)])

    def user_vectors(self, rows: Tensor) -> Tensor:
        """The vectors of some examples' users, shape (n, d)."""
        with torch.no_grad():
            parts = [
                self.model.user_vectors(self.users.take(part), self.history[part]) for part in parts_of(rows, BLOCK)
            ]
            return torch.cat(parts)

    def recall(self, rows: Tensor, k: int) -> float:
        """The share of some examples whose item is among the k nearest of all."""
        users, items, hits = self.user_vectors(rows), self.item_vectors(), 0
        for part, positive in zip(parts_of(users, 256), parts_of(self.positive[rows], 256), strict=True):
            near = (part @ items.T).topk(k, dim=1).indices
            hits += int((near == positive[:, None]).any(dim=1).sum())
        return hits / len(rows)


def fit_towers(
    spec: TwoTower,
    examples: TowerExamples,
    items: TowerItems,
    directory: Path,
    seed: int = 0,
    progress: Progress = lambda step, share: None,  # noqa: ARG005
    epochs: int | None = None,
) -> TowerReport:
    """Fit the towers and write them to `directory`, where `Towers.load` reads them.

    Without `epochs` the newest tenth of the examples is held out and decides when to stop; with it everything is
    learned from, that many times over: the way to fit again once the number is known. The same examples, seed and
    machine give the same bytes. Raises ValueError, with what to do, for examples that nothing can be learned from.
    """
    checked(examples, items)
    order = np.argsort(items.hashes)
    items = TowerItems(items.hashes[order], {name: _rows(column, order) for name, column in items.columns.items()})
    with deterministic():
        fitting, encodings = prepared(spec, examples, items, seed)
        newest = torch.from_numpy(np.argsort(examples.at, kind="stable"))
        held = int(len(newest) * HELD_OUT) if epochs is None else 0
        learned, held_out = newest[: len(newest) - held], newest[len(newest) - held :]
        held_out = held_out[torch.linspace(0, held - 1, min(held, MOST_HELD_OUT)).long()] if held else held_out
        k = max(1, min(RECALL_AT, len(items.hashes) // 4))
        with half_precision_products():
            made, recall = fit(fitting, learned, held_out, k, spec.epochs if epochs is None else epochs, progress)
        asked = held_out if held else learned[-MOST_HELD_OUT:]
        queries, vectors = fitting.user_vectors(asked).numpy(), fitting.item_vectors().numpy()
    if not np.isfinite(vectors).all():
        raise ValueError("the towers' training diverged; lower the learning rate of TwoTower(...)")
    index = build_index(vectors, queries, k=spec.quota, seed=seed, progress=progress)
    directory.mkdir(parents=True, exist_ok=True)
    index.save(directory / INDEX)
    write(spec, fitting, encodings, directory)
    return TowerReport(made, recall, k, len(examples), len(vectors), index.rung, index.recall, index.reached)


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
    shapes = {len(examples.history), len(examples.item), len(examples.at), len(examples)}
    if len(shapes) != 1:
        raise ValueError(f"the examples' arrays have different lengths: {sorted(shapes)}")


def prepared(
    spec: TwoTower, examples: TowerExamples, items: TowerItems, seed: int
) -> tuple[Fitting, tuple[Encoding, Encoding]]:
    """A model with drawn weights and the data as tensors; and the encodings of users and items."""
    generator = torch.Generator().manual_seed(seed)
    user, item = Encoding.of(examples.user, examples.columns), Encoding.of(items.hashes, items.columns)
    sizes = [{name: len(known) for name, known in side.values.items()} for side in (user, item)]
    towers = [
        Tower(len(side.ids), size, 2 * len(side.scalings), spec.dimensions, generator)
        for side, size in zip((user, item), sizes, strict=True)
    ]
    history = places_in(item.ids, np.ascontiguousarray(examples.history).view(np.uint64))
    positive = places_in(item.ids, examples.item) - 1
    counts = np.bincount(positive, minlength=len(item.ids))
    # the probability to be in a batch at least once, as a positive or drawn uniformly
    batch, shares = min(spec.batch, len(examples)), np.minimum(counts / len(examples), 1 - 1e-9)
    absent = batch * np.log1p(-shares) + int(UNIFORM * batch) * np.log1p(-min(1 / len(counts), 1 - 1e-9))
    appears = -np.expm1(absent)
    fitting = Fitting(
        spec,
        TwoTowers(towers[0], towers[1], history.shape[1]),
        user.encode(examples.user, examples.columns),
        torch.from_numpy(history),
        item.encode(items.hashes, items.columns),
        torch.from_numpy(positive),
        torch.from_numpy(np.log(np.maximum(appears, 1e-12)).astype(np.float32)),
        torch.from_numpy(recency(examples.at)),
        generator,
    )
    return fitting, (user, item)


def recency(at: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much each example counts, 1 on average: what is popular moves on, so the newest count most.

    Age is measured in examples, not in days, so that slow and fast catalogues are treated alike; the oldest keep a
    share, because tastes last longer than fashions.
    """
    age = np.empty(len(at))
    age[np.argsort(at, kind="stable")] = np.arange(len(at))[::-1] / len(at)
    weights = OLD_SHARE + (1 - OLD_SHARE) * 2.0 ** (-age / HALF_AGE)
    return np.asarray(weights / weights.mean(), np.float32)


def fit(
    fitting: Fitting, learned: Tensor, held_out: Tensor, k: int, epochs: int, progress: Progress
) -> tuple[int, float]:
    """Learn; keep the weights of the epoch with the best recall@k. Returns that epoch's number and its recall."""
    spec, model = fitting.spec, fitting.model
    optimisers = optimisers_of(model, spec.learning_rate)
    best: tuple[float, int, dict[str, Tensor]] = (math.nan, epochs, {})
    for epoch in range(1, epochs + 1):
        shuffled = learned[torch.randperm(len(learned), generator=fitting.generator)]
        for rows in parts_of(shuffled, spec.batch):
            loss = fitting.loss(rows)
            if loss.requires_grad:
                model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                for optimiser in optimisers:
                    optimiser.step()
        progress(f"two towers, epoch {epoch}", epoch / epochs)
        if len(held_out):
            recall = fitting.recall(held_out, k)
            if not recall <= best[0]:
                best = (recall, epoch, {name: tensor.clone() for name, tensor in model.state_dict().items()})
            elif epoch - best[1] >= PATIENCE:
                break
    if best[2]:
        model.load_state_dict(best[2])
    return best[1], best[0]


def optimisers_of(model: TwoTowers, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Adam; its sparse form for tables whose gradients are sparse."""
    sparse = [p for p in (model.user.ids, model.item.ids, model.worth) if len(p) >= SPARSE_FROM]
    dense = [p for p in model.parameters() if all(p is not other for other in sparse)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(dense, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    ]
    if sparse:
        optimisers.append(torch.optim.SparseAdam(sparse, lr=learning_rate))
    return optimisers


def write(spec: TwoTower, fitting: Fitting, encodings: tuple[Encoding, Encoding], directory: Path) -> None:
    """Write everything but the index."""
    model, (user, item) = fitting.model, encodings
    write_onnx(model, directory / USER_MODEL)
    np.save(directory / USERS, model.user.ids.detach().numpy())
    np.save(directory / HISTORY, model.history_table())
    arrays: dict[str, Hashes | Vectors] = {"users": user.ids, "items": item.ids}
    for name, values in user.values.items():
        arrays[f"values_{name}"] = values
        arrays[f"table_{name}"] = model.user.values[name].detach().numpy()
    np.savez(directory / VOCABULARY, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own flag
    facts = {
        "history": spec.history.name,
        "history_length": len(model.recency),
        "dimensions": spec.dimensions,
        "numbers": {name: [scaling.mean, scaling.deviation] for name, scaling in user.scalings.items()},
        "categories": list(user.values),
    }
    (directory / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parts_of(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Rows, at most `size` at a time."""
    return torch.split(rows, size)


@contextmanager
def deterministic() -> Iterator[None]:
    """Have torch refuse whatever is not the same every time; as it was, afterwards."""
    filling: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms loads a compiler first, for a second
    filling.fill_uninitialized_memory = False  # a quarter of the time, and nothing here reads what it did not write
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        filling.fill_uninitialized_memory = before[1]


@contextmanager
def half_precision_products() -> Iterator[None]:
    """Have matrix products round what they multiply to bfloat16 where the processor is made for that.

    Sums, weights and everything else stay in single precision; a step takes a third of the time (mixed precision
    training; Micikevicius et al., ICLR 2018). As it was, afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _distinct(hashes: Hashes) -> Hashes:
    return np.setdiff1d(hashes, np.zeros(1, np.uint64))


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
