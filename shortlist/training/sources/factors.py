"""Fitting a matrix factorisation: a truncated singular value decomposition, as deep as proves useful."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.specs import MatrixFactorisation
from shortlist.retrieval.vectors.index import Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.graph import Graph
from shortlist.training.sources.item_weights import Exam, Figures, Interactions, Share, chosen_prolific, proven

DIMENSIONS, DEFAULT = (32, 64, 128, 256, 512, 1_024, 2_048), 256
"""Those that are tried, as far as the declaration allows, and the one that the others have to beat."""
POWER, POWERS = 1.0, (1.0, 0.5)
"""The power of the singular values in what a user is told of an item, by default, and those that it has to beat."""
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
    if earlier is None:
        most = min(spec.dimensions, max(DEFAULT, NUMBERS // len(acts.items)))
        chosen = choose(Exam.of(acts, seed), most, seed, lambda share: step(0.5 * share))
    else:
        chosen = {name: earlier[name] for name in ("prolific", "dimensions", "power")}
    graph = Graph.of(acts.matrix(), chosen["dimensions"], seed, chosen["prolific"])
    spoken, wanted = halves(graph, chosen["power"])
    step(0.9)
    queries = acts.matrix()[np.sort(np.random.default_rng(seed).permutation(acts.users)[:1_024])] @ spoken
    lengths = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    index = build_index(wanted, queries / lengths, k=spec.quota, seed=seed)
    step(1.0)
    return Factors(spec.history.name, acts.items, spoken, index), {
        "items": len(acts.items),
        "pairs": len(acts),
        **chosen,
        "rung": index.rung,
        "index_recall": index.recall,
    }


def choose(exam: Exam, most: int, seed: int, step: Share) -> dict[str, Any]:
    """How much users of many items are held back, then how deep and with what power; and what was reached by each."""

    def shallow(prolific: float) -> Callable[[Any], Vectors]:
        spoken, wanted = halves(Graph.of(exam.learned, min(DEFAULT, most), seed, prolific), POWER)
        return lambda known: np.asarray((known @ spoken) @ wanted.T)

    prolific, judged = chosen_prolific(exam, shallow, lambda share: step(0.4 * share))
    graph = Graph.of(exam.learned, most, seed, prolific)
    step(0.8)
    spoken, wanted = halves(graph, POWER)
    deepest = len(graph.values)
    counts = sorted({min(count, deepest) for count in DIMENSIONS})

    def scores(known: Any) -> Mapping[tuple[int, float], Vectors]:
        users = known @ spoken
        told = {power: users * graph.values ** (power - POWER) for power in POWERS}
        return {(count, power): told[power][:, :count] @ wanted[:, :count].T for count in counts for power in POWERS}

    found = exam.ndcg(scores, lambda share: step(0.8 + 0.2 * share))
    dimensions, power = proven(found, (min(DEFAULT, deepest), POWER))
    reached = {f"{count} {power}": float(np.nanmean(values)) for (count, power), values in found.items()}
    return {"prolific": prolific, "dimensions": dimensions, "power": power, "ndcg@20": judged | reached}


def halves(graph: Graph, power: float) -> tuple[Vectors, Vectors]:
    """What each item says of a user, and how it is wanted, shape (items, dimensions): Di^-1/2 V S^q, Di^1/2 V S^q.

    With q half the power, a user's product with an item is the rank-limited x Di^-1/2 V S^power V^T Di^1/2; at 1 it is
    the reconstruction of the matrix.
    """
    scaled = graph.directions * graph.values ** (power / 2)
    spoken, wanted = scaled / graph.root[:, None], scaled * graph.root[:, None]
    return np.ascontiguousarray(spoken, np.float32), np.ascontiguousarray(wanted, np.float32)
