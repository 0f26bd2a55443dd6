"""A graph as a file: models are written for one opset, checked, and as the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OPSET, IR_VERSION = 18, 9
"""What the oldest onnxruntime that we take reads."""


def write_graph(graph: Any, path: Path) -> None:
    """Check an onnx graph and write it."""
    import onnx
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="shortlist")
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString(deterministic=True))
