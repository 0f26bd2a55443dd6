"""The item tower at serving: an item that the release has never seen becomes a vector by what is known of it.

Its id is then that of nobody, which training hides some items behind for this; attributes and the words of texts are
looked up, and what is dense goes through ONNX, as for users. Nothing in the directory can execute code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import Hashes
from shortlist.onnx_session import session_of
from shortlist.retrieval.models.sentences import SentenceEncoder, vectors_of
from shortlist.retrieval.models.towers import Category, Scaling, Towers, attributes_of, numbers_in
from shortlist.retrieval.models.words import words_of
from shortlist.retrieval.vectors.index import Vectors

MODEL, TABLES, FACTS = "item.onnx", "item.npz", "item.json"


class ItemTower:
    """What the vectors of a release's items are made of: `attributes`, the words of `texts`, and an id's embedding.

    `unknown` is the embedding of an id that the release does not know, shape (d,).
    """

    def __init__(
        self,
        towers: Towers,
        session: Any,
        described: tuple[Sequence[str], Sequence[str]],
        scalings: Mapping[str, Scaling],
        categories: Mapping[str, Category],
        unknown: Vectors,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        self.towers, self._session = towers, session
        self.attributes, self.texts = (tuple(names) for names in described)
        self.scalings, self.categories, self.unknown = dict(scalings), dict(categories), unknown
        self.encoder = encoder

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Every attribute that it looks at."""
        return (*self.attributes, *self.texts)

    def vectors(self, items: Entities, hashes: Hashes, positions: NDArray[np.int64] | None = None) -> Vectors:
        """Vectors of length 1, shape (n, d), of items, known to the release or not.

        They are those of items as they are described now, or were at log `positions`.
        """
        columns = attributes_of(items, self.attributes, hashes, positions)
        if self.encoder is None:
            columns |= words_of(items, self.texts, hashes, positions)
        rows = self.towers.rows_of(hashes)
        known: Vectors = np.repeat(self.unknown[None], len(hashes), axis=0)
        known[rows >= 0] = self.towers.id_vectors(rows[rows >= 0])
        for name, category in self.categories.items():
            column = columns[name]
            assert isinstance(column, Ragged)
            known = known + category.mean(column)
        inputs = {"item": np.ascontiguousarray(known, np.float32)}
        numbers = [scaling.apply(numbers_in(columns[name])) for name, scaling in self.scalings.items()]
        if self.encoder is not None:
            read = vectors_of(items, self.texts, hashes, self.encoder, positions)
            numbers += [column.astype(np.float32) for column in read.values()]
        if numbers:
            inputs["numbers"] = np.concatenate(numbers, axis=1)
        vectors: Vectors = self._session.run(["vector"], inputs)[0]
        return vectors

    @classmethod
    def load(cls, directory: Path, towers: Towers) -> ItemTower:
        """What training wrote beside the towers. Raises ValueError when something is missing or damaged."""
        try:
            facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            with (directory / TABLES).open("rb") as file, np.load(file, allow_pickle=False) as held:
                tables = {name: held[name] for name in held.files}
            categories = {
                name: Category(tables[f"values_{name}"], tables[f"table_{name}"]) for name in facts["categories"]
            }
            scalings = {name: Scaling(*values) for name, values in facts["numbers"].items()}
            session = session_of(directory / MODEL)
            described = facts["attributes"], facts["texts"]
            encoder = SentenceEncoder.load(directory) if facts["encoder"] else None
            return cls(towers, session, described, scalings, categories, tables["unknown"], encoder)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise ValueError(f"the item tower in {directory} cannot be read ({error}); train again") from error
