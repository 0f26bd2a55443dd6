"""Writing the item tower, so that serving can make the vectors of items that training has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shortlist.features.hashing import Hashes
from shortlist.retrieval.index import Vectors
from shortlist.retrieval.item_tower import FACTS, MODEL, TABLES
from shortlist.retrieval.specs import TwoTower
from shortlist.training.tower_data import Encoding
from shortlist.training.tower_model import Tower


def write_item_tower(spec: TwoTower, tower: Tower, encoding: Encoding, directory: Path) -> None:
    """Write the tables of attribute values, the scalings of numbers, and the dense part as ONNX."""
    write_dense(tower, directory / MODEL)
    arrays: dict[str, Hashes | Vectors] = {"unknown": tower.ids[0].detach().numpy()}
    for name, values in encoding.values.items():
        arrays[f"values_{name}"] = values
        arrays[f"table_{name}"] = tower.values[name].detach().numpy()
    np.savez(directory / TABLES, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own flag
    facts = {
        "attributes": list(spec.item_attributes),
        "texts": list(spec.item_text),
        "numbers": {name: [scaling.mean, scaling.deviation] for name, scaling in encoding.scalings.items()},
        "categories": list(encoding.values),
        "encoder": bool(encoding.widths),
    }
    (directory / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def write_dense(tower: Tower, path: Path) -> None:
    """Write what comes behind the tables, node by node: the same weights give the same bytes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dimensions = tower.ids.shape[1]
    names = ("inner", "inner_bias", "outer", "outer_bias")
    constants = [numpy_helper.from_array(getattr(tower, name).detach().numpy().copy(), name) for name in names]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    constants.append(numpy_helper.from_array(np.array([1e-6], np.float32), "least"))
    shapes, nodes, total = {"item": dimensions}, [], "item"
    if len(tower.numbers):
        constants.append(numpy_helper.from_array(tower.numbers.detach().numpy().copy(), "scale"))
        shapes["numbers"], total = len(tower.numbers), "total"
        nodes.append(helper.make_node("MatMul", ["numbers", "scale"], ["from_numbers"]))
        nodes.append(helper.make_node("Add", ["item", "from_numbers"], [total]))
    nodes += [
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
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in shapes.items()]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", dimensions])
    graph = helper.make_graph(nodes, "item tower", inputs, [output], constants)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="shortlist"
    )
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString(deterministic=True))
