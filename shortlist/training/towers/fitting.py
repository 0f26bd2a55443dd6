"""Fitting the two towers: in-batch sampled softmax with the logQ correction, stopped on the newest positives.

Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019. The other
positives of a batch are the negatives of each; popular items are among them more often, so the log of each item's
frequency is subtracted from its logits. An item that is the same as the positive, or that the same user liked, is no
negative and is masked. What was shown beside the positive and not acted on is a negative of that row alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shortlist.features.hashing import Hashes
from shortlist.retrieval.models.towers import (
    FACTS,
    HISTORY,
    INDEX,
    USER_MODEL,
    USERS,
    VOCABULARY,
    places_in,
)
from shortlist.retrieval.specs import TwoTower
from shortlist.retrieval.vectors.index import Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.training.towers.data import (
    Encoding,
    TowerExamples,
    TowerItems,
    chance_in_batch,
    checked,
    in_order_of_hash,
    recency,
)
from shortlist.training.towers.item_tower import write_item_tower
from shortlist.training.towers.model import SPARSE_FROM, Sequence, Side, Tower, TwoTowers, write_onnx

Progress = Callable[[str, float], None]
"""Told the step that runs and the share of it that is done, from 0 to 1."""
HELD_OUT, MOST_HELD_OUT = 0.1, 2_048
RECALL_AT, PATIENCE = 100, 2
UNKNOWN_USER = 0.5
"""The share of training rows whose user id is hidden, so that newcomers get a vector that was learned for them."""
UNKNOWN_ITEM = 0.02
"""The share of a batch's items whose id is hidden, where attributes say something of them too: what is new is then a
vector that was learned from attributes alone (Volkovs et al., DropoutNet, NeurIPS 2017). A small one: more of them cost
recall among items that are known, and teach the new one no better."""
SHARED_BY = 2
"""Items that a value of an attribute must have to be told apart: one that a single item has says no more than its id
does, and teaches, with all others like it, what a value that nobody knows is worth."""
UNIFORM = 0.5
"""Items drawn uniformly as further negatives, per positive (mixed negative sampling; Yang et al., WWW 2020): without
them nobody ever learns that an item which no one acted on is not wanted."""
SLATE = 0.1
"""The weight of a choice from what was shown, beside that from the catalogue. In three simulated worlds it made the ten
nearest items better by the truth and cost no recall; with more weight, recall of what the old policy showed fell."""
HISTORY_KEPT = 0.5
"""The share of the places of the history that a batch looks at, so that no single item decides; and it is faster."""
WIDTH = 128
"""A batch has a multiple of this many items, the last of them masked: a processor's kernels are made for one shape."""
WEIGHT_DECAY = 0.01
BLOCK = 4_096
CPU = torch.device("cpu")


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


@dataclass
class Fitting:
    """The model and its data, as tensors on one device; `log_q` is the log of each item's chance to be in a batch.

    `beside` are places (from 1) of items that were shown with each positive and not acted on, 0 where there are fewer.
    """

    spec: TwoTower
    model: TwoTowers
    users: Side
    history: Tensor
    items: Side
    positive: Tensor
    beside: Tensor
    log_q: Tensor
    weight: Tensor
    generator: torch.Generator

    def loss(self, rows: Tensor) -> Tensor:
        """The sampled softmax of one batch, and that of each positive's own slate."""
        known, positive, device = self.users.take(rows), self.positive[rows], rows.device
        user = known.forget(UNKNOWN_USER, self.generator)
        size = (int(UNIFORM * len(rows)),)
        uniform = torch.randint(len(self.items.id), size, generator=self.generator, device=device)
        distinct, place = torch.unique(torch.cat([positive, uniform]), return_inverse=True)
        place = place[: len(rows)]
        room = -len(distinct) % WIDTH
        vectors = self.some_items(functional.pad(distinct, (0, room)))
        kept = self.places_kept()
        users = self.model.user_vectors(user, self.history[rows][:, kept], kept)
        # each distinct item stands once for all its occurrences in the batch: Q is its probability to be there at all
        rarity = functional.pad(-self.log_q[distinct], (0, room), value=-math.inf).repeat(len(rows), 1)
        same_user, other = ((known.id[:, None] == known.id) & (known.id > 0)).nonzero(as_tuple=True)
        rarity[same_user, place[other]] = -math.inf
        rarity[torch.arange(len(rows), device=device), place] = -self.log_q[positive]
        logits = torch.addmm(rarity, users / self.spec.temperature, vectors.T)
        losses = functional.cross_entropy(logits, place, reduction="none")
        if self.beside.shape[1]:
            losses = losses + SLATE * self.slate_losses(users, vectors[place], self.beside[rows])
        return (losses * self.weight[rows]).mean()

    def slate_losses(self, users: Tensor, chosen: Tensor, beside: Tensor) -> Tensor:
        """-log of the probability to choose the positive from what was shown; 0 where nothing is known of that.

        By Luce's axiom the same scores that choose from the whole catalogue choose from a part of it, or from some
        that are drawn of that part. As further columns of the sampled softmax they would count for as much as any one
        item of the catalogue, which is nothing.
        """
        distinct, place = torch.unique(beside, return_inverse=True)
        vectors = self.some_items((distinct - 1).clamp(min=0))[place]
        others = torch.einsum("nd,nsd->ns", users, vectors).masked_fill(beside == 0, -math.inf)
        logits = torch.cat([(users * chosen).sum(dim=1, keepdim=True), others], dim=1) / self.spec.temperature
        return torch.logsumexp(logits, dim=1) - logits[:, 0]

    def some_items(self, places: Tensor) -> Tensor:
        """The vectors of some items to learn from, shape (n, d): some do not say which they are."""
        side = self.items.take(places)
        return self.model.item_vectors(side.forget(UNKNOWN_ITEM, self.generator) if self.described else side)

    @property
    def described(self) -> bool:
        """Whether more than an id is known of items."""
        return bool(self.items.bags) or self.items.numbers.shape[1] > 0

    def renew(self, learned: Tensor) -> None:
        """Make items that the learned rows say nothing of like new ones, where attributes say something.

        Their ids stood for negatives alone: they know that nobody acted on these items, not that nobody will.
        """
        places = (self.positive[learned] + 1, self.history[learned].flatten(), self.beside[learned].flatten())
        unheard = torch.ones(len(self.model.item.ids), dtype=torch.bool, device=learned.device)
        unheard[torch.cat(places)] = False
        if self.described:
            with torch.no_grad():
                self.model.item.ids[unheard] = self.model.item.ids[0].clone()

    def places_kept(self) -> Tensor:
        """The places of the history that a batch looks at, newest first."""
        length = self.history.shape[1]
        drawn = torch.randperm(length, generator=self.generator, device=self.history.device)
        return drawn[: math.ceil(length * HISTORY_KEPT)].sort().values

    def item_vectors(self) -> Tensor:
        """Every item's vector, shape (m, d)."""
        with torch.no_grad():
            rows = torch.arange(len(self.items.id), device=self.items.id.device)
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
    items, device = in_order_of_hash(items), device_of()
    with deterministic(device):
        fitting, encodings = prepared(spec, examples, items, seed, device)
        newest = torch.from_numpy(np.argsort(examples.at, kind="stable")).to(device)
        held = int(len(newest) * HELD_OUT) if epochs is None else 0
        learned, held_out = newest[: len(newest) - held], newest[len(newest) - held :]
        if held:
            held_out = held_out[torch.linspace(0, held - 1, min(held, MOST_HELD_OUT)).long().to(device)]
        k = max(1, min(RECALL_AT, len(items.hashes) // 4))
        with half_precision_products():
            made, _ = fit(fitting, learned, held_out, k, spec.epochs if epochs is None else epochs, progress)
        fitting.renew(learned)
        recall = fitting.recall(held_out, k) if held else math.nan
        asked = held_out if held else learned[-MOST_HELD_OUT:]
        queries, vectors = fitting.user_vectors(asked).cpu().numpy(), fitting.item_vectors().cpu().numpy()
    # what is too large for a float is no number, or divides its vector to nothing
    if not all(np.allclose(np.einsum("nd,nd->n", side, side), 1, atol=0.01) for side in (queries, vectors)):
        raise ValueError("the towers' training diverged; lower the learning rate of TwoTower(...)")
    index = build_index(vectors, queries, k=spec.quota, seed=seed, progress=progress)
    directory.mkdir(parents=True, exist_ok=True)
    index.save(directory / INDEX)
    write(spec, fitting, encodings, directory)
    return TowerReport(made, recall, k, len(examples), len(vectors), index.rung, index.recall, index.reached)


def prepared(
    spec: TwoTower, examples: TowerExamples, items: TowerItems, seed: int, device: torch.device = CPU
) -> tuple[Fitting, tuple[Encoding, Encoding]]:
    """A model with drawn weights and the data as tensors; and the encodings of users and items."""
    generator = torch.Generator(device).manual_seed(seed)
    user, item = Encoding.of(examples.user, examples.columns), Encoding.of(items.hashes, items.columns, SHARED_BY)
    sizes = [{name: len(known) for name, known in side.values.items()} for side in (user, item)]
    towers = [
        Tower(len(side.ids), size, side.numbers, spec.dimensions, generator)
        for side, size in zip((user, item), sizes, strict=True)
    ]
    history = places_in(item.ids, np.ascontiguousarray(examples.history).view(np.uint64))
    positive = places_in(item.ids, examples.item) - 1
    beside = np.zeros((len(examples), 0), np.uint64) if examples.beside is None else examples.beside
    sequence = Sequence(spec.dimensions, history.shape[1], generator) if spec.sequence else None
    batch = min(spec.batch, len(examples))
    appears = chance_in_batch(positive, len(item.ids), batch, int(UNIFORM * batch))
    fitting = Fitting(
        spec,
        TwoTowers(towers[0], towers[1], history.shape[1], sequence).to(device),
        user.encode(examples.user, examples.columns).to(device),
        torch.from_numpy(history).to(device),
        item.encode(items.hashes, items.columns).to(device),
        torch.from_numpy(positive).to(device),
        torch.from_numpy(places_in(item.ids, beside)).to(device),
        torch.from_numpy(np.log(np.maximum(appears, 1e-12)).astype(np.float32)).to(device),
        torch.from_numpy(recency(examples.at)).to(device),
        generator,
    )
    return fitting, (user, item)


def fit(
    fitting: Fitting, learned: Tensor, held_out: Tensor, k: int, epochs: int, progress: Progress
) -> tuple[int, float]:
    """Learn; keep the weights of the epoch with the best recall@k. Returns that epoch's number and its recall."""
    spec, model = fitting.spec, fitting.model
    optimisers = optimisers_of(model, spec.learning_rate)
    best: tuple[float, int, dict[str, Tensor]] = (math.nan, epochs, {})
    for epoch in range(1, epochs + 1):
        shuffled = learned[torch.randperm(len(learned), generator=fitting.generator, device=learned.device)]
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
    model, (user, item) = fitting.model.cpu(), encodings
    write_onnx(model, directory / USER_MODEL)
    write_item_tower(spec, model.item, item, directory)
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


def device_of() -> torch.device:
    """Where to learn: on CUDA where there is any."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to give the same sums every time
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def deterministic(device: torch.device = CPU) -> Iterator[None]:
    """Have torch refuse whatever is not the same every time; as it was, afterwards. On CUDA it warns instead."""
    filling: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory
    # use_deterministic_algorithms loads a compiler first, for a second
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "warn")
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
