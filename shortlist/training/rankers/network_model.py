"""The deep cross network as a torch model: crosses and a multilayer perceptron side by side, one head per action.

Wang et al., DCN V2, WWW 2021, with crosses of low rank. Beside it, at training only, stands what the place of an item
adds to each head (Zhao et al., Recommending what video to watch next, RecSys 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shortlist.training.onnx_file import write_graph

CROSS_RANK = 16
RANKS = 64
"""Places that are told apart; what was shown further down counts as this one. 0 is a place that is not known."""


class DeepCrossNetwork(nn.Module):
    """Standardised columns [rows, inputs] to log-odds [rows, heads]."""

    def __init__(
        self, inputs: int, rates: Sequence[float], layers: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.inputs = inputs

        def drawn(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * scale)

        rank = min(CROSS_RANK, inputs)
        widths = [inputs, *hidden]
        self.down = nn.ParameterList(drawn(inputs, rank, inputs**-0.5) for _ in range(layers))
        self.up = nn.ParameterList(drawn(rank, inputs, rank**-0.5) for _ in range(layers))
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(inputs)) for _ in range(layers))
        self.deep = nn.ParameterList(
            drawn(wide, narrow, (2 / wide) ** 0.5) for wide, narrow in zip(widths, hidden, strict=False)
        )
        self.deep_bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in hidden)
        self.out = drawn(inputs + widths[-1], len(rates), 0.01)
        self.out_bias = nn.Parameter(torch.logit(torch.tensor(rates, dtype=torch.float32)))
        self.places = nn.Parameter(torch.zeros(RANKS + 1, len(rates)))

    def forward(self, inputs: Tensor) -> Tensor:
        """What the columns say, whatever the place."""
        crossed = hidden = inputs
        for down, up, shift in zip(self.down, self.up, self.shift, strict=True):
            crossed = inputs * (crossed @ down @ up + shift) + crossed
        for weight, bias in zip(self.deep, self.deep_bias, strict=True):
            hidden = functional.relu(hidden @ weight + bias)
        return torch.cat([crossed, hidden], dim=1) @ self.out + self.out_bias

    def of_places(self, places: Tensor) -> Tensor:
        """What the places [rows] add to the log-odds; nothing where a place is not known."""
        return functional.embedding(places, self.places, padding_idx=0)

    def centre(self, places: Tensor) -> None:
        """Count the mean of what known places add to the heads' biases, so that a place left out is an average one."""
        known = places[places > 0]
        if len(known):
            with torch.no_grad():
                mean = self.places[known].mean(dim=0)
                self.places[1:] -= mean
                self.out_bias.add_(mean)


def places_of(rank: NDArray[np.float64] | None, rows: int) -> Tensor:
    """Ranks (1 is the top, NaN unknown) as places [rows]."""
    if rank is None:
        return torch.zeros(rows, dtype=torch.int64)
    return torch.from_numpy(np.where(rank >= 1, np.clip(np.nan_to_num(rank), 1, RANKS), 0).astype(np.int64))


def write_onnx(model: DeepCrossNetwork, path: Path) -> None:
    """Write the network without its places as ONNX, node by node: the same weights give the same bytes."""
    from onnx import TensorProto, helper, numpy_helper

    kept = [(name, weight) for name, weight in model.named_parameters() if name != "places"]
    constants = [numpy_helper.from_array(weight.detach().numpy().copy(), name) for name, weight in kept]
    nodes, crossed, hidden = [], "inputs", "inputs"
    for layer in range(len(model.down)):
        nodes += [
            helper.make_node("MatMul", [crossed, f"down.{layer}"], [f"low_{layer}"]),
            helper.make_node("Gemm", [f"low_{layer}", f"up.{layer}", f"shift.{layer}"], [f"high_{layer}"]),
            helper.make_node("Mul", ["inputs", f"high_{layer}"], [f"product_{layer}"]),
            helper.make_node("Add", [f"product_{layer}", crossed], [f"crossed_{layer}"]),
        ]
        crossed = f"crossed_{layer}"
    for layer in range(len(model.deep)):
        nodes += [
            helper.make_node("Gemm", [hidden, f"deep.{layer}", f"deep_bias.{layer}"], [f"sum_{layer}"]),
            helper.make_node("Relu", [f"sum_{layer}"], [f"hidden_{layer}"]),
        ]
        hidden = f"hidden_{layer}"
    nodes += [
        helper.make_node("Concat", [crossed, hidden], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "out", "out_bias"], ["logits"]),
    ]
    sizes = {"inputs": model.inputs, "logits": len(model.out_bias)}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "deep cross network", ends[:1], ends[1:], constants)
    write_graph(graph, path)
