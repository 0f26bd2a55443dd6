"""Texts as vectors: a sentence encoder that runs through ONNX. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import Hashes
from shortlist.onnx_session import session_of
from shortlist.retrieval.models.towers import attributes_of
from shortlist.retrieval.vectors.index import Vectors

ENCODER, TOKENIZER = "sentences.onnx", "tokenizer.json"
MOST_TOKENS, CHUNK = 256, 64


class SentenceEncoder:
    """A directory's `sentences.onnx` and `tokenizer.json`."""

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self._session, self._tokenizer = session, tokenizer
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.enable_padding()
        self.dimensions = int(session.get_outputs()[0].shape[1])

    @classmethod
    def load(cls, directory: Path) -> SentenceEncoder:
        """Raises ValueError, with what to do, where there is none or it cannot be read."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ValueError("a text encoder needs tokenizers; run: pip install 'shortlist[text]'") from error
        try:
            tokenizer = Tokenizer.from_str((directory / TOKENIZER).read_text(encoding="utf-8"))
            return cls(session_of(directory / ENCODER), tokenizer)
        except Exception as error:  # those of the tokenizer have no class but this one
            raise ValueError(f"the text encoder in {directory} cannot be read ({error}); train again") from error

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, shape (n, dimensions); short texts together, so that little is padded."""
        vectors: Vectors = np.zeros((len(texts), self.dimensions), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(texts), CHUNK):
            rows = order[start : start + CHUNK]
            found = self._tokenizer.encode_batch([texts[row] for row in rows])
            ids, mask = (
                np.array([getattr(one, part) for one in found], np.int64) for part in ("ids", "attention_mask")
            )
            vectors[rows] = self._session.run(["vector"], {"ids": ids, "mask": mask})[0]
        return vectors


def vectors_of(
    entities: Entities,
    names: Sequence[str],
    hashes: Hashes,
    encoder: SentenceEncoder,
    positions: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The texts of entities, now or as of log `positions`, as vectors, shape (n, dimensions); zeros without one."""
    columns: dict[str, NDArray[np.float64]] = {}
    for name, column in attributes_of(entities, names, hashes, positions).items():
        assert isinstance(column, Ragged)
        distinct, which = np.unique(column.values, return_inverse=True)
        vectors = encoder.encode([text or "" for text in entities.text(distinct)])[which]
        found = np.zeros((len(hashes), encoder.dimensions))
        np.add.at(found, np.repeat(np.arange(len(hashes)), np.diff(column.offsets)), vectors)
        columns[f"{name}_vector"] = found / np.maximum(np.diff(column.offsets), 1)[:, None]
    return columns
