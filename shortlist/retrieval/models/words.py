"""Texts of entities (a title, a description) as words, so that what is new is near what reads like it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.retrieval.models.towers import attributes_of

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, each once, in order."""
    return list(dict.fromkeys(WORD.findall(text.casefold())))


def words_column(name: str) -> str:
    """What the words of the attribute `name` are called."""
    return f"{name}_words"


def words_of(
    entities: Entities, names: Sequence[str], hashes: Hashes, positions: NDArray[np.int64] | None = None
) -> dict[str, Ragged]:
    """The hashed words of some entities' texts, now or as of log `positions`, one row each; none without a text."""
    columns: dict[str, Ragged] = {}
    for name, column in attributes_of(entities, names, hashes, positions).items():
        assert isinstance(column, Ragged)
        distinct, which = np.unique(column.values, return_inverse=True)
        found = [words(text or "") for text in entities.text(distinct)]
        lengths = np.array([len(one) for one in found], np.int64)
        hashed = hash_strings([word for one in found for word in one])
        counts = lengths[which]
        stops = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        inside = np.arange(stops[-1]) - np.repeat(stops[:-1], counts)
        starts = (np.cumsum(lengths) - lengths)[which]
        columns[words_column(name)] = Ragged(hashed[np.repeat(starts, counts) + inside], stops[column.offsets])
    return columns
