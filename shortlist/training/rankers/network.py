"""Fitting the deep cross network: every action at once, the place as a bias, stopped where held-out rows say so.

The log-odds of an action are what the columns say plus what the place says; only the first part is written and served.
Where the same item is clicked more at the top, the place explains it, and the columns need not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shortlist.ranking.calibration import Head
from shortlist.ranking.network import NETWORK, save_facts
from shortlist.ranking.specs import DeepCross
from shortlist.ranking.standard import Input, Inputs
from shortlist.training.rankers.calibration import Floats, calibrate, heads_of, newest, outcomes_of, weights_of
from shortlist.training.rankers.fitting import Fit, NothingToLearnError, Progress, RankingData
from shortlist.training.rankers.linear import Shape, log_loss
from shortlist.training.rankers.network_model import DeepCrossNetwork, places_of, write_onnx
from shortlist.training.towers.fitting import deterministic, device_of

BATCHES, LEAST_BATCH, MOST_BATCH = 100, 64, 1_024
"""Batches of an epoch, where that makes them neither smaller nor larger than this."""
PATIENCE = 3
WEIGHT_DECAY = 0.01
PLACES_RATE = 0.03
"""Learning rate of the places: each is one number, seen in many rows, and has to come from nothing."""
BLOCK = 65_536


@dataclass(frozen=True)
class Examples:
    """n rows as tensors: `inputs` (n, i), `places` (n,), `happened` (n, heads)."""

    inputs: Tensor
    places: Tensor
    happened: Tensor

    @classmethod
    def of(cls, data: RankingData, inputs: Inputs, heads: tuple[str, ...], device: torch.device) -> Examples:
        """The rows of `data`, whose columns are those of `inputs`."""
        outcomes, rows = outcomes_of(data), len(data.gain)
        starts = range(0, rows, BLOCK)
        parts = [torch.from_numpy(inputs.of(data.matrix[:, start : start + BLOCK])) for start in starts]
        happened = np.stack([outcomes[head] for head in heads], axis=1).astype(np.float32)
        tensors = torch.cat(parts), places_of(data.rank, rows), torch.from_numpy(happened)
        return cls(*(tensor.to(device) for tensor in tensors))

    def __len__(self) -> int:
        return len(self.places)


def fit_network(
    spec: DeepCross,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    """Fit the network and write it to `directory`, where `Network.load` reads it.

    Raises NothingToLearnError where no action that is worth anything tells one row from another.
    """
    heads, dropped = learnable(data)
    validation = validation and newest(validation)
    shape = Shape.of(data.matrix)
    numbers = (shape.standard.unit, shape.standard.mean, shape.standard.scale)
    columns = zip(data.names, *(column.tolist() for column in numbers), shape.gaps.tolist(), strict=True)
    inputs = [Input(*column) for column in columns]
    device = device_of()
    with deterministic(device), one_thread():
        learned = Examples.of(data, Inputs(inputs), heads, device)
        held_out = Examples.of(validation, Inputs(inputs), heads, device) if validation else None
        generator = torch.Generator().manual_seed(seed)
        rates = learned.happened.double().mean(dim=0).cpu().tolist()
        model = DeepCrossNetwork(learned.inputs.shape[1], rates, spec.layers, spec.hidden, generator).to(device)
        epochs = fit(spec, model, learned, held_out, generator, progress)
        model.centre(learned.places)
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise NothingToLearnError(f"the training of {spec.name} diverged; lower its learning_rate")
        weights, figures = weights_of(data), {"epochs": float(epochs)}
        calibrated = [Head(action, weights[action]) for action in heads]
        if validation and held_out:
            logits = dict(zip(heads, logits_of(model, held_out).T, strict=True))
            calibrated, kept = heads_of(logits, validation, weights)
            figures |= kept
    write_onnx(model.cpu(), directory / NETWORK)
    save_facts(directory, inputs, calibrated)
    return Fit("network", figures, dropped)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread: batches are so small that several wait for each other, at 20 times the cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learnable(data: RankingData) -> tuple[tuple[str, ...], dict[str, str]]:
    """The actions that tell one row from another, and why the others do not. Raises NothingToLearnError."""
    outcomes, weights = outcomes_of(data), weights_of(data)
    rows, counts = len(data.gain), {name: int(happened.sum()) for name, happened in outcomes.items()}
    dropped = {name: f"never happened in {rows} training rows" for name, count in counts.items() if not count}
    dropped |= {name: f"happened in all {rows} training rows" for name, count in counts.items() if count == rows}
    heads = tuple(name for name in outcomes if name not in dropped)
    if not any(weights[head] for head in heads):
        found = ", ".join(f"{name} (worth {weights[name]:g}) happened {count} times" for name, count in counts.items())
        raise NothingToLearnError(
            f"no action that is worth anything tells one of the {rows} training rows from another: {found}; give "
            "the objective's proxies weights for what users do, or log more of it"
        )
    return heads, dropped


def fit(
    spec: DeepCross,
    model: DeepCrossNetwork,
    learned: Examples,
    held_out: Examples | None,
    generator: torch.Generator,
    progress: Progress,
) -> int:
    """Learn; keep the weights of the epoch with the least held-out log loss. Returns that epoch's number."""
    parameters: list[dict[str, Any]] = [
        {"params": [weight for name, weight in model.named_parameters() if name != "places"]},
        {"params": [model.places], "lr": PLACES_RATE, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    batch = min(MOST_BATCH, max(LEAST_BATCH, len(learned) // BATCHES))
    best: tuple[float, int, dict[str, Tensor]] = (math.inf, spec.epochs, {})
    for epoch in range(1, spec.epochs + 1):
        shuffled = torch.randperm(len(learned), generator=generator).to(learned.places.device)
        for rows in torch.split(shuffled, batch):
            logits = model(learned.inputs[rows]) + model.of_places(learned.places[rows])
            losses = functional.binary_cross_entropy_with_logits(logits, learned.happened[rows], reduction="none")
            optimiser.zero_grad()
            losses.sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        progress(epoch, spec.epochs)
        if held_out:
            loss = held_out_loss(model, held_out)
            if loss < best[0]:
                best = (loss, epoch, {name: weight.clone() for name, weight in model.state_dict().items()})
            elif epoch - best[1] >= PATIENCE:
                break
    if best[2]:
        model.load_state_dict(best[2])
    return best[1]


def held_out_loss(model: DeepCrossNetwork, held_out: Examples) -> float:
    """The log loss of all heads together after calibration: what the network will be worth, not what it says now."""
    logits, happened = logits_of(model, held_out), held_out.happened.cpu().numpy() > 0
    pairs = zip(logits.T, happened.T, strict=True)
    return sum(log_loss(calibrate(column, acted).log_odds(column), acted) for column, acted in pairs)


def logits_of(model: DeepCrossNetwork, rows: Examples) -> Floats:
    """The log-odds of every head, places included, shape (n, heads)."""
    with torch.no_grad():
        parts = zip(torch.split(rows.inputs, BLOCK), torch.split(rows.places, BLOCK), strict=True)
        logits = torch.cat([model(inputs) + model.of_places(places) for inputs, places in parts])
    return np.asarray(logits.double().cpu().numpy())
