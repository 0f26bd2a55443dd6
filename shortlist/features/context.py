"""What a request said of itself: as text in the log, one text per impression, and as columns when training reads it.

Serving computes features of the request, and users' vectors, from the context as it came; what training and the audit
make of the logged text is the same, or else there would be skew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shortlist.events.schema import FieldType, value_type

Context = dict[str, NDArray[Any]]
"""By name one value per row: numbers as float64 (NaN missing), texts and lists of texts as objects (None missing)."""


def encode(context: Mapping[str, Any]) -> str | None:
    """The text of a request's context, keys in order; None where the request said nothing."""
    if not context:
        return None
    return json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def context_of(declared: Mapping[str, FieldType], texts: pa.Array) -> tuple[Context, int]:
    """The columns of `declared` values in logged texts, and of how many rows the text could not be read.

    What is not declared, and a value of another type than its declaration, is missing.
    """
    coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    said = [_read(text) for text in coded.dictionary.to_pylist()]
    unreadable = np.isin(codes, [code for code, known in enumerate(said) if known is None]).sum()
    columns: Context = {}
    for name, of in declared.items():
        found = value_type(of)
        kind = found[0] if found else "float"
        values = [_value(kind, (known or {}).get(name)) for known in [*said, None]]  # the last is what -1 reads
        distinct = np.empty(len(values), object)
        distinct[:] = values
        columns[name] = (distinct if kind in ("str", "list[str]") else distinct.astype(np.float64))[codes]
    return columns, int(unreadable)


def taken(context: Context, rows: NDArray[np.int64]) -> Context:
    """The context of some rows; row -1 has said nothing."""
    missing: Any = {True: None, False: np.nan}
    return {name: np.append(values, missing[values.dtype == object])[rows] for name, values in context.items()}


def values_of(context: Context, row: int) -> dict[str, Any]:
    """What one row's request said, as a query has it: what is missing is left out."""
    values = {name: column[row] for name, column in context.items()}
    return {n: v for n, v in values.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


def _read(text: str) -> dict[str, Any] | None:
    try:
        known = json.loads(text)
    except ValueError:
        return None
    return known if isinstance(known, dict) else None


def _value(kind: str, value: Any) -> Any:
    if kind == "str":
        return value if isinstance(value, str) else None
    if kind == "list[str]":
        return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None
    return float(value) if isinstance(value, int | float) else math.nan
