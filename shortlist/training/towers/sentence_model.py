"""A sentence encoder of the BERT family as ONNX, node by node, from the files that sentence-transformers publishes.

Whoever serves needs no torch and no copy of the library that trained it: mean of the last layer's tokens, length 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.training.onnx_file import write_graph

Weights = Mapping[str, NDArray[np.float32]]
CONFIG, WEIGHTS, POOLING = "config.json", "model.safetensors", "1_Pooling/config.json"


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file. Raises ValueError where it is none, or holds something else than floats."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError("a sentence encoder needs safetensors; run: pip install 'shortlist[text]'") from error
    found = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                kind = file.get_slice(name).get_dtype()
                if kind == "I64":  # places that are counted off: they can be made
                    continue
                if kind != "F32":
                    raise ValueError(f"{name} of {path} has the type {kind}; expected F32")
                found[name.removeprefix("bert.")] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off, or no safetensors file ({error}); copy it again") from error
    return found


class Graph:
    """Nodes and constants in the making; every step returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: NDArray[Any]) -> str:
        """A constant."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, value: float) -> str:
        """A number."""
        return self.constant(np.array(value, np.float32))

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """One node."""
        from onnx import helper

        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def linear(self, weights: Weights, layer: str, value: str) -> str:
        """x @ W.T + b."""
        product = self.add("MatMul", value, self.constant(weights[f"{layer}.weight"].T))
        return self.add("Add", product, self.constant(weights[f"{layer}.bias"]))

    def norm(self, weights: Weights, layer: str, value: str, epsilon: float) -> str:
        """Layer normalisation."""
        scale, bias = (self.constant(weights[f"{layer}.{part}"]) for part in ("weight", "bias"))
        return self.add("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)


def bert_layer(graph: Graph, weights: Weights, layer: str, value: str, mask: str, config: Mapping[str, Any]) -> str:
    """Self-attention, then two linear layers with a GELU between them; each is added to what it saw and normalised."""
    heads, width, epsilon = config["num_attention_heads"], config["hidden_size"], config["layer_norm_eps"]
    split = graph.constant(np.array([0, 0, heads, width // heads], np.int64))
    joined = graph.constant(np.array([0, 0, width], np.int64))

    def of_heads(part: str, order: list[int]) -> str:
        made = graph.linear(weights, f"{layer}.attention.self.{part}", value)
        return graph.add("Transpose", graph.add("Reshape", made, split), perm=order)

    query, key, held = of_heads("query", [0, 2, 1, 3]), of_heads("key", [0, 2, 3, 1]), of_heads("value", [0, 2, 1, 3])
    products = graph.add("Div", graph.add("MatMul", query, key), graph.number(math.sqrt(width // heads)))
    shares = graph.add("Softmax", graph.add("Add", products, mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", shares, held), perm=[0, 2, 1, 3])
    attended = graph.linear(weights, f"{layer}.attention.output.dense", graph.add("Reshape", mixed, joined))
    seen = graph.add("Add", attended, value)
    seen = graph.norm(weights, f"{layer}.attention.output.LayerNorm", seen, epsilon)
    inner = graph.linear(weights, f"{layer}.intermediate.dense", seen)
    erf = graph.add("Erf", graph.add("Div", inner, graph.number(math.sqrt(2))))
    half = graph.add("Mul", inner, graph.number(0.5))
    gelu = graph.add("Mul", half, graph.add("Add", erf, graph.number(1)))
    outer = graph.add("Add", graph.linear(weights, f"{layer}.output.dense", gelu), seen)
    return graph.norm(weights, f"{layer}.output.LayerNorm", outer, epsilon)


def write_sentence_encoder(folder: Path, path: Path) -> None:
    """Write the model of a sentence-transformers folder as ONNX: `ids` and `mask` (n, t) in, `vector` (n, d) out.

    Raises ValueError, with what was found, for a folder without one, or for a model that is built otherwise.
    """
    from onnx import TensorProto, helper

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        pooling = folder / POOLING
        pooled = json.loads(pooling.read_text(encoding="utf-8")) if pooling.exists() else {}
        if (config["model_type"], config["hidden_act"]) != ("bert", "gelu"):
            raise ValueError(
                f"its model is {config['model_type']} with {config['hidden_act']}; expected bert with gelu"
            )
        if not pooled.get("pooling_mode_mean_tokens", True):
            raise ValueError("its vectors are not the mean of the tokens")
        weights, graph = read_weights(folder / WEIGHTS), Graph()
        mask = graph.add("Cast", "mask", to=TensorProto.FLOAT)
        least = graph.number(float(np.finfo(np.float32).min))
        away = graph.add("Mul", graph.add("Sub", graph.number(1), mask), least)
        hidden = graph.add("Unsqueeze", away, graph.constant(np.array([1, 2], np.int64)))
        length = graph.add("Shape", "ids", start=1, end=2)
        start, axis = (graph.constant(np.array([value], np.int64)) for value in (0, 0))
        places = graph.constant(weights["embeddings.position_embeddings.weight"])
        words = graph.add("Gather", graph.constant(weights["embeddings.word_embeddings.weight"]), "ids")
        value = graph.add("Add", words, graph.add("Slice", places, start, length, axis))
        value = graph.add("Add", value, graph.constant(weights["embeddings.token_type_embeddings.weight"][0]))
        value = graph.norm(weights, "embeddings.LayerNorm", value, config["layer_norm_eps"])
        for number in range(config["num_hidden_layers"]):
            value = bert_layer(graph, weights, f"encoder.layer.{number}", value, hidden, config)
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} holds no sentence encoder that can be read: {error!r}") from error
    column = graph.add("Unsqueeze", mask, graph.constant(np.array([2], np.int64)))
    total = graph.add("ReduceSum", graph.add("Mul", value, column), graph.constant(np.array([1], np.int64)), keepdims=0)
    size = graph.add("ReduceL2", total, graph.constant(np.array([1], np.int64)), keepdims=1)
    vector = graph.add("Div", total, graph.add("Max", size, graph.number(1e-6)))
    graph.nodes.append(helper.make_node("Identity", [vector], ["vector"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("ids", "mask")]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", config["hidden_size"]])
    write_graph(helper.make_graph(graph.nodes, "sentence encoder", inputs, [output], graph.constants), path)
