"""ONNX models, as retrieval and ranking both run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime


def session_of(path: Path) -> Any:
    """An ONNX model ready to run on the caller's thread. Raises ValueError when it is damaged."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = path.read_bytes()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of onnxruntime have no class in common but this one
        raise ValueError(f"{path.name} is no model that can be run: {error}") from error
