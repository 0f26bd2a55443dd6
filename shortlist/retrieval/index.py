"""Which vectors are nearest? An index by inner product: exact, or codes with exact refinement (see `ladder`)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]

VECTORS, CODES, FACTS = "vectors.npy", "codes.faiss", "index.json"
WRITTEN = frozenset({"n", "dimensions", "factor", "crc32"})


class Index:
    """Vectors, shape (n, d), to be searched by inner product: exactly, or by codes and exact refinement.

    `recall` is recall@k as measured when it was built (1 where the search is exact), `reached` whether that is the
    target. Searches from several threads are fine. Memory: 4nd bytes, and np/2 for codes of p parts.
    """

    def __init__(self, flat: Any, codes: Any = None, factor: int = 1, facts: Mapping[str, Any] | None = None) -> None:
        self.flat, self.codes, self.factor = flat, codes, factor
        self._n = int(flat.ntotal)
        self._refined: Any = None
        if codes is not None:
            self._refined = faiss.IndexRefine(codes, flat)
            self._refined.k_factor = factor
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
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        return cls(flat)

    def __len__(self) -> int:
        return self._n

    @property
    def dimensions(self) -> int:
        """d."""
        return int(self.flat.d)

    @property
    def rung(self) -> str:
        """The step of the ladder, e.g. "PQ64x4fs, refine 8", or "exact"."""
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
        return 4 * len(self) * self.dimensions + len(self) * int(self.facts["parts"]) // 2

    @property
    def vectors(self) -> Vectors:
        """Every vector, shape (n, d): the index's own memory, not to be written to."""
        if not len(self):
            return np.empty((0, self.dimensions), np.float32)
        kept: Vectors = faiss.rev_swig_ptr(self.flat.get_xb(), len(self) * self.dimensions)
        return kept.reshape(len(self), self.dimensions)

    def search(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        """The rows of the best `min(k, n)` vectors of each query and their inner products, best first.

        One query of shape (d,) answers with shape (k,), a batch of shape (q, d) with shape (q, k).
        """
        k = min(k, len(self))
        batch = np.ascontiguousarray(queries if queries.ndim == 2 else queries[None, :], np.float32)
        if k <= 0 or not len(batch):
            return np.empty((*queries.shape[:-1], max(k, 0)), np.int32), np.empty(
                (*queries.shape[:-1], max(k, 0)), np.float32
            )
        scores, rows = self._search(batch, k)
        narrow = rows.astype(np.int32)
        return (narrow, scores) if queries.ndim == 2 else (narrow[0], scores[0])

    def _search(self, batch: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        found: tuple[Vectors, NDArray[np.int64]] | None = None
        if self._refined is not None and k * self.factor <= self._n:
            found = self._refined.search(batch, k)
        if found is None or found[1][:, -1].min() < 0:  # codes that all tie can leave places empty
            found = self.flat.search(batch, k)
        return found

    def save(self, directory: Path) -> None:
        """Write the vectors, their codes and what is known of them; nothing in there can execute code."""
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / VECTORS, self.vectors)
        if self.codes is not None:
            faiss.write_index(self.codes, str(directory / CODES))
        sums = {name: checksum(directory / name) for name in (VECTORS, CODES) if (directory / name).exists()}
        facts = {**self.facts, "n": len(self), "dimensions": self.dimensions, "factor": self.factor, "crc32": sums}
        (directory / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Index:
        """The index that `save` wrote. Raises ValueError, saying which file, when one is missing or damaged."""
        try:
            facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            for name, expected in facts["crc32"].items():
                if name not in (VECTORS, CODES) or checksum(directory / name) != expected:
                    raise ValueError(f"{directory / name} is not what was written: its checksum differs")
            vectors = np.load(directory / VECTORS, mmap_mode="r", allow_pickle=False)
            if vectors.shape != (facts["n"], facts["dimensions"]) or vectors.dtype != np.float32:
                raise ValueError(
                    f"{directory / VECTORS} holds {vectors.dtype}{vectors.shape}, expected {facts['n']} rows"
                )
            codes = faiss.read_index(str(directory / CODES)) if CODES in facts["crc32"] else None
        except (OSError, KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"the index in {directory} cannot be read ({error}); train again") from error
        held = {name: value for name, value in facts.items() if name not in WRITTEN}
        return cls(cls.exact(vectors).flat, codes, int(facts["factor"]), held)


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total
