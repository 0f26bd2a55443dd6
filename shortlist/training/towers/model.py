"""The two towers as a torch model: embeddings, attributes and history in, vectors of length 1 out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shortlist.retrieval.models.towers import EMPTY_WEIGHT
from shortlist.training.onnx_file import write_graph

SPARSE_FROM = 100_000
"""Rows from which an embedding table gets sparse gradients: a dense step would touch every row."""
SMALL = 0.02


@dataclass(frozen=True)
class Bags:
    """Attribute values as places in a vocabulary, ragged: row i has `places[offsets[i]:offsets[i + 1]]`, never none."""

    places: Tensor
    offsets: Tensor

    def take(self, rows: Tensor) -> Bags:
        """The bags of some rows."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = functional.pad(lengths.cumsum(0), (1, 0))
        inside = torch.arange(int(offsets[-1]), device=rows.device) - offsets[:-1].repeat_interleave(lengths)
        return Bags(self.places[self.offsets[rows].repeat_interleave(lengths) + inside], offsets)

    def to(self, device: torch.device) -> Bags:
        """The same bags on a device."""
        return Bags(self.places.to(device), self.offsets.to(device))


@dataclass(frozen=True)
class Side:
    """What one tower looks at, n rows: the id's place, attribute values, and scaled numbers, shape (n, 2 x numbers)."""

    id: Tensor
    bags: Mapping[str, Bags]
    numbers: Tensor

    def take(self, rows: Tensor) -> Side:
        """Some rows."""
        return Side(self.id[rows], {name: bags.take(rows) for name, bags in self.bags.items()}, self.numbers[rows])

    def forget(self, share: float, generator: torch.Generator) -> Side:
        """The same rows, of which about `share` do not say who they are."""
        hidden = torch.rand(len(self.id), generator=generator, device=self.id.device) < share
        return Side(self.id.masked_fill(hidden, 0), self.bags, self.numbers)

    def to(self, device: torch.device) -> Side:
        """The same rows on a device."""
        bags = {name: bags.to(device) for name, bags in self.bags.items()}
        return Side(self.id.to(device), bags, self.numbers.to(device))


class Tower(nn.Module):
    """id embedding + mean embedding of each attribute + numbers, then a residual layer, then length 1."""

    def __init__(
        self, ids: int, values: Mapping[str, int], numbers: int, dimensions: int, generator: torch.Generator
    ) -> None:
        super().__init__()

        def drawn(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator, device=generator.device) * scale)

        self.ids = drawn(ids + 1, dimensions, SMALL)
        self.values = nn.ParameterDict({name: drawn(size + 1, dimensions, SMALL) for name, size in values.items()})
        self.numbers = drawn(numbers, dimensions, SMALL)
        self.inner = drawn(dimensions, dimensions, dimensions**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(dimensions))
        self.outer = nn.Parameter(torch.zeros(dimensions, dimensions))
        self.outer_bias = drawn(1, dimensions, SMALL)

    def inputs(self, side: Side) -> Tensor:
        """The sum of what is known, shape (n, d)."""
        total = functional.embedding(side.id, self.ids, sparse=len(self.ids) >= SPARSE_FROM)
        for name, table in self.values.items():
            bags = side.bags[name]
            total = total + functional.embedding_bag(bags.places, table, bags.offsets[:-1], mode="mean")
        return total + side.numbers @ self.numbers

    def vectors(self, total: Tensor) -> Tensor:
        """Vectors of length 1, shape (n, d)."""
        hidden = functional.relu(total @ self.inner + self.inner_bias)
        return functional.normalize(total + hidden @ self.outer + self.outer_bias, dim=1, eps=1e-6)


class Sequence(nn.Module):
    """One block of causal self-attention, read at its newest place (SASRec; Kang and McAuley, ICDM 2018).

    Only the newest place is asked for, so the block's cost is that of a weighted mean: the question goes to the keys
    once, and values are mixed after they were added up. It starts as nothing, beside the mean that it refines.
    """

    def __init__(self, dimensions: int, history: int, generator: torch.Generator) -> None:
        super().__init__()

        def drawn(rows: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, dimensions, generator=generator, device=generator.device) * scale)

        self.positions = drawn(history, SMALL)
        self.asks = drawn(dimensions, dimensions**-0.5)
        self.mixes = nn.Parameter(torch.zeros(dimensions, dimensions))

    def forward(self, items: Tensor, logits: Tensor, ages: Tensor) -> Tensor:
        """What the newest item makes of the others, shape (n, d) of items (n, h, d) and their logits (n, h)."""
        placed = items + self.positions[ages]
        question = placed[:, 0] @ self.asks
        weights = torch.softmax(logits + (placed @ question[:, :, None])[:, :, 0], dim=1)
        mixed: Tensor = (weights[:, None] @ placed)[:, 0] @ self.mixes
        return mixed


class TwoTowers(nn.Module):
    """Both towers. The history is pooled from the item tower's id embeddings, so that both learn from each other.

    Its weights are a softmax over what each item is worth and how long ago it was (attention with one learned query
    whose keys are numbers); a `sequence` sees what the items are, too.
    """

    def __init__(self, user: Tower, item: Tower, history: int, sequence: Sequence | None = None) -> None:
        super().__init__()
        self.user, self.item, self.sequence = user, item, sequence
        self.worth = nn.Parameter(torch.zeros(len(item.ids), 1))
        self.recency = nn.Parameter(torch.zeros(history))

    def pooled(self, history: Tensor, ages: Tensor) -> Tensor:
        """The weighted mean of a history's embeddings, shape (n, d) of places (n, h); zeros where it is empty.

        `ages` says how many items ago each column is, shape (h,), newest first.
        """
        sparse, empty = len(self.item.ids) >= SPARSE_FROM, history == 0
        worth = functional.embedding(history, self.worth, sparse=sparse).squeeze(2)
        logits = worth.masked_fill(empty, EMPTY_WEIGHT) + self.recency[ages]
        weights = torch.softmax(logits, dim=1).masked_fill(empty, 0.0)
        if self.sequence is None:
            table = self.item.ids
            return functional.embedding_bag(history, table, per_sample_weights=weights, mode="sum", sparse=sparse)
        items = functional.embedding(history, self.item.ids, sparse=sparse).masked_fill(empty[:, :, None], 0.0)
        read: Tensor = self.sequence(items, logits, ages)
        return (weights[:, None] @ items)[:, 0] + read

    def user_vectors(self, side: Side, history: Tensor, ages: Tensor | None = None) -> Tensor:
        """Vectors of users, shape (n, d); see `pooled`. By default column i is i items ago."""
        ages = torch.arange(history.shape[1], device=history.device) if ages is None else ages
        return self.user.vectors(self.user.inputs(side) + self.pooled(history, ages))

    def item_vectors(self, side: Side) -> Tensor:
        """Vectors of items, shape (n, d)."""
        return self.item.vectors(self.item.inputs(side))

    def history_table(self) -> NDArray[np.float16]:
        """Each item's embedding and, last, its worth; row 0 is an empty place. Shape (items + 1, d + 1).

        In half precision: it is as large as all item vectors, and a history is a mean of many rows.
        """
        table = torch.cat([self.item.ids, self.worth], dim=1).detach().numpy().copy()
        table[0] = 0.0
        table[0, -1] = EMPTY_WEIGHT
        return np.asarray(table, np.float16)


def sequence_nodes(sequence: Sequence, constants: list[Any], known: str, result: str) -> list[Any]:
    """The nodes of `Sequence.forward`, whose outcome is added to `known`; its weights are appended to `constants`."""
    from onnx import helper, numpy_helper

    weights = {"positions": sequence.positions, "asks": sequence.asks, "mixes": sequence.mixes}
    constants += [numpy_helper.from_array(tensor.detach().numpy().copy(), name) for name, tensor in weights.items()]
    constants.append(numpy_helper.from_array(np.array(0, np.int64), "newest_place"))
    constants.append(numpy_helper.from_array(np.array([2], np.int64), "last_axis"))
    return [
        helper.make_node("Add", ["history", "positions"], ["placed"]),
        helper.make_node("Gather", ["placed", "newest_place"], ["newest"], axis=1),
        helper.make_node("MatMul", ["newest", "asks"], ["question"]),
        helper.make_node("Unsqueeze", ["question", "last_axis"], ["question_column"]),
        helper.make_node("MatMul", ["placed", "question_column"], ["answer_column"]),
        helper.make_node("Squeeze", ["answer_column", "last_axis"], ["answers"]),
        helper.make_node("Add", ["logits", "answers"], ["asked_logits"]),
        helper.make_node("Softmax", ["asked_logits"], ["asked_shares"], axis=1),
        helper.make_node("Unsqueeze", ["asked_shares", "axis"], ["asked_row"]),
        helper.make_node("MatMul", ["asked_row", "placed"], ["attended_row"]),
        helper.make_node("Squeeze", ["attended_row", "axis"], ["attended"]),
        helper.make_node("MatMul", ["attended", "mixes"], ["mixed"]),
        helper.make_node("Add", [known, "mixed"], [result]),
    ]


def write_onnx(model: TwoTowers, path: Path) -> None:
    """Write the dense part of the user tower as ONNX."""
    from onnx import helper, numpy_helper

    tower, dimensions, length = model.user, model.user.ids.shape[1], len(model.recency)
    constants = [numpy_helper.from_array(model.recency.detach().numpy().copy(), "recency")]
    nodes = [
        helper.make_node("Add", ["weight", "recency"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
        helper.make_node("Unsqueeze", ["shares", "axis"], ["row"]),
        helper.make_node("MatMul", ["row", "history"], ["pooled_row"]),
        helper.make_node("Squeeze", ["pooled_row", "axis"], ["pooled"]),
        helper.make_node("Add", ["user", "pooled"], ["known"]),
    ]
    total = "known"
    if model.sequence is not None:
        nodes += sequence_nodes(model.sequence, constants, total, "read")
        total = "read"
    shapes = {"user": [dimensions], "history": [length, dimensions], "weight": [length]}
    write_tower(tower, "user tower", shapes, nodes, constants, total, path)


def write_tower(
    tower: Tower,
    name: str,
    shapes: dict[str, list[int]],
    nodes: list[Any],
    constants: list[Any],
    total: str,
    path: Path,
) -> None:
    """Write the dense part of a tower, node by node: the same weights give the same bytes.

    `nodes` and their `constants` make `total`, the sum of all embeddings, of inputs of these shapes. torch's own
    exporter takes seconds and writes source paths into the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    names = ("inner", "inner_bias", "outer", "outer_bias")
    constants = [*constants, *(numpy_helper.from_array(getattr(tower, n).detach().numpy().copy(), n) for n in names)]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    constants.append(numpy_helper.from_array(np.array([1e-6], np.float32), "least"))
    if len(tower.numbers):
        constants.append(numpy_helper.from_array(tower.numbers.detach().numpy().copy(), "scale"))
        shapes = {**shapes, "numbers": [len(tower.numbers)]}
        nodes = [*nodes, helper.make_node("MatMul", ["numbers", "scale"], ["from_numbers"])]
        nodes.append(helper.make_node("Add", [total, "from_numbers"], ["total"]))
        total = "total"
    nodes = [
        *nodes,
        helper.make_node("MatMul", [total, "inner"], ["product"]),
        helper.make_node("Add", ["product", "inner_bias"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "outer"], ["change"]),
        helper.make_node("Add", [total, "change"], ["changed"]),
        helper.make_node("Add", ["changed", "outer_bias"], ["raw"]),
        helper.make_node("ReduceL2", ["raw", "axis"], ["length"], keepdims=1),
        helper.make_node("Max", ["length", "least"], ["safe_length"]),
        helper.make_node("Div", ["raw", "safe_length"], ["vector"]),
    ]
    inputs = [helper.make_tensor_value_info(given, TensorProto.FLOAT, ["n", *shape]) for given, shape in shapes.items()]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", tower.ids.shape[1]])
    write_graph(helper.make_graph(nodes, name, inputs, [output], constants), path)
