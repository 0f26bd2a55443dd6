"""Fitting a matrix factorisation: a truncated singular value decomposition, as deep as proves useful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.specs import MatrixFactorisation
from shortlist.retrieval.vectors.index import Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.graph import Graph
from shortlist.training.sources.item_weights import Exam, Figures, Interactions, Share, proven

DIMENSIONS, DEFAULT = (32, 64, 128, 256, 512, 1_024, 2_048), 256
"""Those that are tried, as far as the declaration allows, and the one that the others have to beat."""
NUMBERS = 100_000_000
"""What the vectors of all items may hold together where there are more dimensions than that one: 400 MB."""


def fit_factors(
    spec: MatrixFactorisation, acts: Interactions, seed: int, earlier: Figures | None, step: Share
) -> tuple[Factors, Figures]:
    """The factors, and what is to be reported. `earlier`: those figures of a shorter past, whose choice stands.

    Raises NothingToLearnError where nobody acted on two items.
    """
    if not len(acts) or np.bincount(acts.user).max() < 2:
        raise NothingToLearnError("no user acted on two items, so no item says anything of another")
    figures: dict[str, Any] = {}
    if earlier is None:
        exam = Exam.of(acts, seed)
        most = min(spec.dimensions, max(DEFAULT, NUMBERS // len(acts.items)))
        spoken, wanted = halves(exam.learned, most, seed)
        step(0.4)
        tried = sorted({min(count, spoken.shape[1]) for count in DIMENSIONS})

        def scores(known: Any) -> Mapping[int, Vectors]:
            users = known @ spoken
            return {count: users[:, :count] @ wanted[:, :count].T for count in tried}

        found = exam.ndcg(scores, lambda share: step(0.4 + 0.1 * share))
        dimensions = proven(found, min(DEFAULT, tried[-1]))
        figures["ndcg@20"] = {str(count): float(np.nanmean(values)) for count, values in found.items()}
    else:
        dimensions = int(earlier["dimensions"])
    spoken, wanted = halves(acts.matrix(), dimensions, seed)
    step(0.9)
    queries = acts.matrix()[np.sort(np.random.default_rng(seed).permutation(acts.users)[:1_024])] @ spoken
    lengths = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    index = build_index(wanted, queries / lengths, k=spec.quota, seed=seed)
    step(1.0)
    about = {"items": len(acts.items), "pairs": len(acts), "dimensions": spoken.shape[1]}
    return Factors(spec.history.name, acts.items, spoken, index), {
        **about,
        **figures,
        "rung": index.rung,
        "index_recall": index.recall,
    }


def halves(matrix: Any, dimensions: int, seed: int) -> tuple[Vectors, Vectors]:
    """What each item says of a user, and how it is wanted, shape (items, dimensions): Di^-1/2 V S^1/2, Di^1/2 V S^1/2.

    A user's product with an item is then the rank-limited reconstruction x Di^-1/2 V S V^T Di^1/2.
    """
    graph = Graph.of(matrix, dimensions, seed)
    scaled = graph.directions * np.sqrt(graph.values)
    spoken, wanted = scaled / graph.root[:, None], scaled * graph.root[:, None]
    return np.ascontiguousarray(spoken, np.float32), np.ascontiguousarray(wanted, np.float32)
