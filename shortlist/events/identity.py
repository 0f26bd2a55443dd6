"""Which event ids are in the log: what makes an append idempotent.

The ids of unsealed events are kept as they are; of sealed ones, a 128-bit BLAKE2b digest each, in sorted arrays that
are merged so that there are only logarithmically many (Bentley and Saxe, 1980). 16 bytes of memory per sealed id.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint64]
"""Shape (2, ids): the halves of each digest, sorted by the first."""


def digests_of(ids: Sequence[str]) -> Digests:
    """The digests in the order of `ids` (not sorted yet)."""
    joined = b"".join([blake2b(text.encode(), digest_size=16).digest() for text in ids])
    return np.frombuffer(joined, "<u8").astype(np.uint64).reshape(-1, 2).T


def sorted_digests(digests: Digests) -> Digests:
    """The same digests, sorted by their first halves."""
    return np.ascontiguousarray(digests[:, np.argsort(digests[0], kind="stable")])


def contained(wanted: Digests, run: Digests) -> NDArray[np.bool_]:
    """Which of `wanted` the sorted `run` holds; both halves must agree."""
    found = np.zeros(wanted.shape[1], bool)
    place = np.searchsorted(run[0], wanted[0])
    open_ = np.flatnonzero(place < run.shape[1])
    while len(open_):
        open_ = open_[run[0, place[open_]] == wanted[0, open_]]
        found[open_] |= run[1, place[open_]] == wanted[1, open_]
        place[open_] += 1
        open_ = open_[place[open_] < run.shape[1]]
    return found


class SeenIds:
    """The ids of a log's events."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._runs: list[Digests] = []

    def fresh(self, ids: Sequence[str | None], pending: set[str]) -> list[int] | None:
        """The places of the ids that are neither known nor `pending`, which they join; None where that is all of them.

        An event without an id ("" or None) is always fresh.
        """
        known = self.known([text for text in ids if text])
        kept: list[int] = []
        for place, text in enumerate(ids):
            if text:
                if text in known or text in pending:
                    continue
                pending.add(text)
            kept.append(place)
        return None if len(kept) == len(ids) else kept

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are in the log."""
        known = self._recent.intersection(ids)
        if self._runs and ids:
            wanted = digests_of(ids)
            order = np.argsort(wanted[0])  # neighbours in the runs are looked up one after the other
            found = np.zeros(len(ids), bool)
            for run in self._runs:
                found[order] |= contained(wanted[:, order], run)
            known.update(ids[place] for place in np.flatnonzero(found).tolist())
        return known

    def add(self, ids: Iterable[str]) -> None:
        """Remember the ids of events that are durable, but not sealed yet."""
        self._recent.update(ids)

    def seal(self, run: Digests, ids: Iterable[str] = ()) -> None:
        """Remember the ids of a sealed part by their sorted digests, and let go of `ids`, which it holds."""
        while self._runs and self._runs[-1].shape[1] <= 2 * run.shape[1]:
            run = sorted_digests(np.concatenate([self._runs.pop(), run], axis=1))
        if run.shape[1]:
            self._runs.append(run)
        self._recent.difference_update(ids)


def save_digests(path: Path, run: Digests) -> None:
    """Write a part's digests beside it. A cache: one that is lost or damaged is made again from the part."""
    data = np.ascontiguousarray(run, "<u8").tobytes()
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))


def load_digests(path: Path) -> Digests | None:
    """A part's digests, or None where the file is missing or not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    data, crc = content[:-4], content[-4:]
    if len(data) % 16 or zlib.crc32(data).to_bytes(4, "little") != crc:
        return None
    return np.frombuffer(data, "<u8").astype(np.uint64).reshape(2, -1)
