"""The feature vector of an impression as text: what was served, to the last bit, for the skew audit.

One JSON object: `features` = the first 16 digits of the feature set's fingerprint, `values` = base64 of the columns in
the feature set's order as little-endian float64, `context` = the request's context values where it had any (JSON keeps
floats to the last bit), because features of the request cannot be replayed without them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = 16
"""How many digits of the fingerprint are kept."""


@dataclass(frozen=True)
class Served:
    """A decoded vector: `mark` is the start of the fingerprint of the features that `values` belong to."""

    mark: str
    values: NDArray[np.float64]
    context: Mapping[str, Any]


def encode(fingerprint: str, values: NDArray[np.float64], context: Mapping[str, Any] | None = None) -> str:
    """The text of one item's feature values, shape (columns,). `context` must be JSON."""
    packed = base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()
    known = {"context": dict(context)} if context else {}
    return json.dumps({"features": fingerprint[:MARK], "values": packed, **known}, separators=(",", ":"))


def decode(text: str) -> Served:
    """The vector that `encode` wrote. Raises ValueError on anything else."""
    try:
        stored = json.loads(text)
        packed = base64.b64decode(stored["values"], validate=True)
        values = np.frombuffer(packed, "<f8").astype(np.float64)
        return Served(str(stored["features"]), values, dict(stored.get("context", {})))
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"{text[:60]!r} is no feature vector ({error})") from error
