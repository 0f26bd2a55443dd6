"""The feature vector of an impression as text: what was served, to the last bit, for the skew audit.

One JSON object: `features` = the first 16 digits of the feature set's fingerprint, `values` = base64 of the columns in
the feature set's order as little-endian float64. Features of the request are replayed with the context beside it.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARK = 16
"""How many digits of the fingerprint are kept."""


@dataclass(frozen=True)
class Served:
    """A decoded vector: `mark` is the start of the fingerprint of the features that `values` belong to."""

    mark: str
    values: NDArray[np.float64]


def encode(fingerprint: str, values: NDArray[np.float64]) -> str:
    """The text of one item's feature values, shape (columns,)."""
    packed = base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()
    return json.dumps({"features": fingerprint[:MARK], "values": packed}, separators=(",", ":"))


def decode(text: str) -> Served:
    """The vector that `encode` wrote. Raises ValueError on anything else."""
    try:
        stored = json.loads(text)
        packed = base64.b64decode(stored["values"], validate=True)
        values = np.frombuffer(packed, "<f8").astype(np.float64)
        return Served(str(stored["features"]), values)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"{text[:60]!r} is no feature vector ({error})") from error
