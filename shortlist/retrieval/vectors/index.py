"""Which vectors are nearest? An index by inner product: exact, or codes with refinement (see `ladder`).

An index with codes keeps the vectors themselves as half floats, where these hold them: what refines is read from
memory, row by row, and that takes half the time. They are then the vectors, in training as when serving.

Where only some rows may be found, few of them are compared exactly, one by one. Of many, the codes find as many
candidates as hold enough of them, which is looked at and not assumed: those that may be found can lie anywhere. What
is refined is then just what a search among them alone would refine, so recall is no less than without a condition.
Which of the two is cheaper is decided by the model of `costs`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from shortlist.retrieval.vectors import costs
from shortlist.retrieval.vectors.codes import Codes
from shortlist.retrieval.vectors.order import greatest
from shortlist.retrieval.vectors.products import Kept, products

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]

Mask = NDArray[np.bool_]

VECTORS, CODES, WEIGH, FACTS = "vectors.npy", "codes_by_four.npy", "directions.npy", "index.json"
WRITTEN = frozenset({"n", "dimensions", "factor", "crc32"})
AT_ONCE = 1 << 22
"""Bytes that are read at a time."""
SPARE = 1.2
"""Times as many candidates as should hold enough of what may be found, because they are not spread evenly."""


@dataclass(frozen=True)
class Among:
    """Which rows may be found: at most `count`; `rows()` are all of them, `holds` whether given ones are."""

    count: int
    rows: Callable[[], Rows]
    holds: Callable[[Rows], Mask]

    @classmethod
    def mask(cls, mask: Mask) -> Among:
        """The rows for which the mask, shape (n,), is true."""
        return cls(int(np.count_nonzero(mask)), lambda: np.flatnonzero(mask).astype(np.int32), lambda rows: mask[rows])


class Index:
    """Vectors, shape (n, d), to be searched by inner product: exactly, or by codes and refinement.

    `vectors` are the index's own memory, not to be written to. `recall` is recall@k as measured when it was built (1
    where the search is exact), `reached` whether that is the target. Searches from several threads are fine. Memory:
    4nd bytes (2nd as halves), and np/2 for codes of p parts.
    """

    def __init__(
        self, vectors: Kept, codes: Codes | None = None, factor: int = 1, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.vectors, self.codes, self.factor = vectors, codes, factor
        self._n = len(vectors)
        self.facts: dict[str, Any] = {
            "rung": "exact",
            "recall": 1.0,
            "target": 1.0,
            "k": 0,
            "parts": 0,
            **(facts or {}),
        }

    @classmethod
    def exact(cls, vectors: Vectors) -> Index:
        """An index that compares a query with every vector."""
        return cls(np.ascontiguousarray(vectors, np.float32))

    def __len__(self) -> int:
        return self._n

    @property
    def dimensions(self) -> int:
        """d."""
        return int(self.vectors.shape[1])

    @property
    def rung(self) -> str:
        """The step of the ladder, e.g. "PCA64x4, refine 8", or "exact"."""
        return str(self.facts["rung"])

    @property
    def recall(self) -> float:
        """Recall@k on held-out queries."""
        return float(self.facts["recall"])

    @property
    def reached(self) -> bool:
        """Whether the recall is what was asked for."""
        return self.recall >= float(self.facts["target"])

    @property
    def memory_bytes(self) -> int:
        """What the vectors and their codes take."""
        return self.vectors.nbytes + len(self) * int(self.facts["parts"]) // 2

    def vectors_of(self, rows: Rows) -> Vectors:
        """The vectors of some rows, shape (m, d)."""
        return self.vectors[rows].astype(np.float32, copy=False)

    def products(self, query: Vectors, rows: Rows) -> Vectors:
        """The product of the query, shape (d,), with the vector of each of some rows."""
        return products(self.vectors, rows, query)

    def search(self, queries: Vectors, k: int, among: Among | None = None) -> tuple[Rows, Vectors]:
        """The rows of the best `min(k, n)` vectors of each query and their inner products, best first.

        One query of shape (d,) answers with shape (k,), a batch of shape (q, d) with shape (q, k). With `among` just
        its rows are found, and n is their number.
        """
        k = min(k, len(self) if among is None else among.count)
        batch = np.ascontiguousarray(queries if queries.ndim == 2 else queries[None, :], np.float32)
        if k <= 0 or not len(batch):
            return np.empty((*queries.shape[:-1], max(k, 0)), np.int32), np.empty(
                (*queries.shape[:-1], max(k, 0)), np.float32
            )
        if among is not None:
            found = [self._search_among(query, k, among) for query in batch]
        elif self.codes is None:
            scores, rows = faiss.knn(batch, np.asarray(self.vectors, np.float32), k, faiss.METRIC_INNER_PRODUCT)
            found = list(zip(scores, rows.astype(np.int32), strict=True))
        elif k * self.factor <= self._n:
            found = [self.best(query, self.codes.search(query, k * self.factor), k) for query in batch]
        else:
            found = [self.best(query, self._every, k) for query in batch]
        if queries.ndim == 1:
            return found[0][1], found[0][0]
        return np.stack([one[1] for one in found]), np.stack([one[0] for one in found])

    @property
    def _every(self) -> Rows:
        return np.arange(self._n, dtype=np.int32)

    def _search_among(self, query: Vectors, k: int, among: Among) -> tuple[Vectors, Rows]:
        """One query; the codes look ever further until what they found holds enough, while that is cheaper."""
        wanted, share = k * self.factor, among.count / self._n
        while self.codes is not None and self.cost_by_codes(share, wanted) < costs.compare(
            among.count, self.dimensions
        ):
            look = int(SPARE * wanted / share) + 1
            found = self.codes.search(query, look)
            kept = found[among.holds(found)]
            if len(kept) >= wanted:
                return self.best(query, kept, k)
            share = max(len(kept), 1) / len(found)  # what may be found is rarer near the query than elsewhere
        return self.best(query, among.rows(), k)

    def cost_by_codes(self, share: float, wanted: int) -> float:
        """What it costs to find so many candidates by their codes where a share of what they find counts."""
        look = SPARE * wanted / share
        if look >= self._n:
            return float("inf")
        parts = int(self.facts["parts"])
        return costs.scan(self._n, parts) + costs.sift(int(look)) + costs.refine(wanted, self.dimensions)

    def best(self, query: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
        """The products of some rows, the best `k` of them, and these rows; best first, ties as given."""
        scores = self.products(query, rows)
        chosen = greatest(scores, k)
        return scores[chosen], rows[chosen]

    def save(self, directory: Path) -> None:
        """Write the vectors, their codes and what is known of them; nothing in there can execute code."""
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / VECTORS, self.vectors)
        if self.codes is not None:
            np.save(directory / CODES, self.codes.held)
            np.save(directory / WEIGH, self.codes.weigh)
        written = (VECTORS, CODES, WEIGH) if self.codes is not None else (VECTORS,)
        sums = {name: checksum(directory / name) for name in written}
        facts = {**self.facts, "n": len(self), "dimensions": self.dimensions, "factor": self.factor, "crc32": sums}
        (directory / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Index:
        """The index that `save` wrote. Raises ValueError, saying which file, when one is missing or damaged."""
        try:
            facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            for name, expected in facts["crc32"].items():
                if name not in (VECTORS, CODES, WEIGH):
                    raise ValueError(f"{directory / name} is of another version's index; train again")
                if checksum(directory / name) != expected:
                    raise ValueError(f"{directory / name} is not what was written: its checksum differs")
            vectors = read_vectors(directory / VECTORS, facts["n"], facts["dimensions"])
            codes = read_codes(directory, facts["n"]) if CODES in facts["crc32"] else None
        except (OSError, KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"the index in {directory} cannot be read ({error}); train again") from error
        held = {name: value for name, value in facts.items() if name not in WRITTEN}
        return cls(vectors, codes, int(facts["factor"]), held)


def read_codes(directory: Path, n: int) -> Codes:
    """The codes of `n` vectors. Raises ValueError where they are of others."""
    held, weigh = (np.load(directory / name, allow_pickle=False) for name in (CODES, WEIGH))
    if held.dtype != np.uint8 or weigh.dtype != np.float32 or weigh.ndim != 2:
        raise ValueError(f"{directory / CODES} holds {held.dtype}, {directory / WEIGH} {weigh.dtype}{weigh.shape}")
    return Codes(weigh, held, n)


def read_vectors(path: Path, n: int, dimensions: int) -> Kept:
    """The vectors in a file, read bit by bit, so that nobody who searches waits."""
    held = np.load(path, mmap_mode="r", allow_pickle=False)
    if held.shape != (n, dimensions) or held.dtype not in (np.float16, np.float32) or not held.flags.c_contiguous:
        raise ValueError(f"{path} holds {held.dtype}{held.shape}, expected {n} rows")
    vectors: Kept = np.empty(held.shape, held.dtype)
    if not held.size:
        return vectors
    memory = vectors.reshape(-1).view(np.uint8)
    with path.open("rb", buffering=0) as file:
        file.seek(held.offset)
        for start in range(0, len(memory), AT_ONCE):
            part: memoryview = memory[start : start + AT_ONCE].data
            if file.readinto(part) != len(part):
                raise ValueError(f"{path} is cut short")
    return vectors


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(AT_ONCE):
            total = zlib.crc32(block, total)
    return total
