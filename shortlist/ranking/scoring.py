"""The stage that scores candidates with a trained ranker, and how a trained ranker is loaded.

A ranker's directory holds `ranker.json` (its kind, its columns) and the model: `linear.json`, `trees.txt`,
`network.json` beside `network.onnx`, or `ensemble.json` beside the directories of its members; beside all but the
network `calibration.json`, where they could be calibrated. Loading executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.ranking.calibration import load_heads
from shortlist.ranking.ensemble import Ensemble, Member, load_members
from shortlist.ranking.scorer import Matrix, MatrixScorer

DESCRIPTION, LINEAR, TREES = "ranker.json", "linear.json", "trees.txt"


class RankerError(ValueError):
    """A ranker's directory cannot be loaded: which, what was found, and what to do."""


def load_scorer(directory: Path) -> MatrixScorer:
    """The ranker that `training.rankers.fitting.fit_ranker` wrote.

    Raises ValueError (RankerError, ModelTextError, LinearError, NetworkError, EnsembleError, CalibrationError) where a
    file is damaged, OSError where one is missing.
    """
    path = directory / DESCRIPTION
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RankerError(f"{path}: not JSON ({error}); train the ranker again") from None
    kind = str(stored.get("kind")) if isinstance(stored, dict) else "nothing"
    if kind not in LOADERS:
        raise RankerError(f"{path}: found kind {kind!r}; expected one of {', '.join(LOADERS)}")
    columns = stored.get("columns")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise RankerError(f"{path}: found no list of 'columns'; train the ranker again")
    scorer = LOADERS[kind](directory, tuple(columns))
    if scorer.names != tuple(columns):
        raise RankerError(f"{path}: its columns are not those of the model beside it; train the ranker again")
    return scorer


def _load_linear(directory: Path, columns: tuple[str, ...]) -> MatrixScorer:  # noqa: ARG001
    from shortlist.ranking.linear import Linear  # numba's kernels are compiled or read when they are needed, not before

    return Linear.load(directory / LINEAR, load_heads(directory))


def _load_trees(directory: Path, columns: tuple[str, ...]) -> MatrixScorer:
    from shortlist.ranking.trees import Trees  # its kernel, too

    return Trees.load(directory / TREES, columns, load_heads(directory))


def _load_network(directory: Path, columns: tuple[str, ...]) -> MatrixScorer:  # noqa: ARG001
    from shortlist.ranking.network import Network  # onnxruntime takes a moment, and only networks need it

    return Network.load(directory)


def _load_ensemble(directory: Path, columns: tuple[str, ...]) -> MatrixScorer:
    spreads = load_members(directory)
    members = [Member(name, load_scorer(directory / name), spread) for name, spread in spreads.items()]
    return Ensemble(members, columns, load_heads(directory))


LOADERS: Mapping[str, Callable[[Path, tuple[str, ...]], MatrixScorer]] = {
    "linear": _load_linear,
    "trees": _load_trees,
    "network": _load_network,
    "ensemble": _load_ensemble,
}


class RankerStage:
    """Scores candidates by their feature block and, for names that are not in it, by their other columns."""

    def __init__(self, name: str, scorer: MatrixScorer) -> None:
        self.name = name
        self.scorer = scorer

    def score(self, query: Query, candidates: Candidates) -> Column:  # noqa: ARG002
        """One score per candidate. Raises MissingColumnsError where a hydrator did not write what is needed."""
        return self.scorer.score(*self._block(candidates))

    def contributions(self, query: Query, candidates: Candidates) -> Mapping[str, Column]:  # noqa: ARG002
        """What each column, and `bias`, adds to each score; see the scorer for the scale."""
        return self.scorer.explain(*self._block(candidates))

    def probabilities(self, query: Query, candidates: Candidates) -> Mapping[str, Column]:  # noqa: ARG002
        """How probable each action is; nothing where the ranker could not be calibrated."""
        return self.scorer.probabilities(*self._block(candidates))

    def _block(self, candidates: Candidates) -> tuple[Matrix, tuple[str, ...]]:
        features = candidates.features
        extra = tuple(name for name in self.scorer.names if name in candidates.columns and name not in features)
        matrix = candidates.matrix
        if matrix is None:
            matrix = np.zeros((0, len(candidates)))
        if not extra:
            return matrix, features
        return np.vstack([matrix, *(candidates.columns[name] for name in extra)]), (*features, *extra)
