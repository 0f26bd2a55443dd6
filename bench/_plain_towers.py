"""The two towers as one writes them by hand in plain PyTorch: the same model, loss, batch and optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shortlist.training.towers.data import TowerExamples
from shortlist.training.towers.fitting import HISTORY_KEPT, UNIFORM, UNKNOWN_ITEM, UNKNOWN_USER, WEIGHT_DECAY, Fitting


class Side(nn.Module):
    """One tower: an id, one categorical attribute of so many values per row, one number."""

    def __init__(self, ids: int, values: int, dimensions: int) -> None:
        super().__init__()
        self.ids = nn.Embedding(ids + 1, dimensions)
        self.values = nn.Embedding(values + 1, dimensions)
        self.number = nn.Linear(2, dimensions)
        self.inner = nn.Linear(dimensions, dimensions)
        self.outer = nn.Linear(dimensions, dimensions)

    def known(self, ids: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
        """The sum of what is known."""
        total: Tensor = self.ids(ids) + self.values(values).mean(dim=1) + self.number(numbers)
        return total

    def forward(self, total: Tensor) -> Tensor:
        """Vectors of length 1."""
        return functional.normalize(total + self.outer(torch.relu(self.inner(total))), dim=1)


class PlainTowers(nn.Module):
    """Both towers and the data of a `Fitting`, whose attributes have the same number of values in each row."""

    def __init__(self, fitting: Fitting, examples: TowerExamples) -> None:
        super().__init__()
        self.spec = fitting.spec
        (users, user_values), (items, item_values) = (
            (side, next(iter(side.bags.values()))) for side in (fitting.users, fitting.items)
        )
        dimensions, most = self.spec.dimensions, int(users.id.max())
        self.user = Side(most, int(user_values.places.max()), dimensions)
        self.item = Side(len(items.id), int(item_values.places.max()), dimensions)
        self.worth, self.recency = (
            nn.Embedding(len(items.id) + 1, 1),
            nn.Parameter(torch.zeros(fitting.history.shape[1])),
        )
        self.of_user = (users.id, user_values.places.reshape(len(users.id), -1), users.numbers)
        self.of_item = (items.id, item_values.places.reshape(len(items.id), -1), items.numbers)
        self.history, self.positive, self.weight = fitting.history, fitting.positive, fitting.weight
        shares = torch.bincount(self.positive, minlength=len(items.id)) / len(examples)
        self.log_q = torch.log(self.spec.batch * (shares + UNIFORM / len(items.id)))

    def loss(self, rows: Tensor) -> Tensor:
        """In-batch softmax with uniform negatives and the logQ correction."""
        (ids, values, numbers), device = (held[rows] for held in self.of_user), rows.device
        hidden = torch.rand(len(rows), device=device) < UNKNOWN_USER
        length = self.history.shape[1]
        kept = torch.randperm(length, device=device)[: int(length * HISTORY_KEPT)]
        history = self.history[rows][:, kept]
        logits = self.worth(history)[:, :, 0] + self.recency[kept]
        weights = torch.softmax(logits.masked_fill(history == 0, -1e4), dim=1)
        pooled = (weights[:, None] @ self.item.ids(history))[:, 0]
        user = self.user(self.user.known(ids.masked_fill(hidden, 0), values, numbers) + pooled)
        positive = self.positive[rows]
        columns = torch.cat([positive, torch.randint(len(self.log_q), (int(UNIFORM * len(rows)),), device=device)])
        item_ids, item_values, item_numbers = (held[columns] for held in self.of_item)
        hidden = torch.rand(len(columns), device=device) < UNKNOWN_ITEM
        item = self.item(self.item.known(item_ids.masked_fill(hidden, 0), item_values, item_numbers))
        products = user @ item.T / self.spec.temperature - self.log_q[columns]
        other = positive[:, None] == columns
        other[:, : len(rows)] |= ids[:, None] == ids
        other.fill_diagonal_(False)
        target = torch.arange(len(rows), device=device)
        losses = functional.cross_entropy(products.masked_fill(other, -torch.inf), target, reduction="none")
        return (losses * self.weight[rows]).mean()


def learn(model: PlainTowers, rows: Tensor) -> None:
    """One pass over some examples."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=model.spec.learning_rate, weight_decay=WEIGHT_DECAY)
    for part in torch.split(rows[torch.randperm(len(rows), device=rows.device)], model.spec.batch):
        optimiser.zero_grad()
        loss: Any = model.loss(part)
        loss.backward()
        optimiser.step()
