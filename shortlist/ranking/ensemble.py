"""Several rankers as one: the mean of what they say, each on the scale of its own spread. Needs nothing but them.

Rankers of one kind err alike, so each kind counts once: two sets of trees share what one linear model has for itself.

A directory holds `ensemble.json`, with the spread of each member, and the members' own directories.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.calibration import Head, probabilities
from shortlist.ranking.scorer import Matrix, MatrixScorer

MEMBERS = "ensemble.json"

Floats = NDArray[np.float64]


class EnsembleError(ValueError):
    """The file names no members: where, what was found, and what to do."""


@dataclass(frozen=True)
class Member:
    """One ranker, and how far its margins are apart within a request: their standard deviation."""

    name: str
    scorer: MatrixScorer
    spread: float


class Ensemble:
    """The mean of its members' margins, each divided by its spread: nobody rules because of a wide scale.

    Members of one kind share what a kind counts.
    """

    def __init__(self, members: Sequence[Member], names: Sequence[str], heads: Sequence[Head] = ()) -> None:
        self.members, self.names, self.heads = tuple(members), tuple(names), tuple(heads)
        alike = Counter(type(member.scorer) for member in members)
        self.factors = [1 / (len(alike) * alike[type(member.scorer)] * member.spread) for member in members]

    def score(self, matrix: Matrix, names: Sequence[str]) -> Floats:
        """One score for each row of `matrix` [features, rows], whose features are named by `names`."""
        margins = [member.scorer.margin(matrix, names) for member in self.members]
        return np.asarray(np.sum([factor * one for factor, one in zip(self.factors, margins, strict=True)], axis=0))

    def margin(self, matrix: Matrix, names: Sequence[str]) -> Floats:
        """The score itself."""
        return self.score(matrix, names)

    def probabilities(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, Floats]:
        """The calibrated probability of each action on each row; nothing where training could not calibrate."""
        return probabilities(self.score(matrix, names), self.heads)

    def explain(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, Floats]:
        """What each column, and `bias`, adds to the score, as its members explain themselves."""
        total: dict[str, Floats] = {"bias": np.zeros(matrix.shape[1])}
        for member, factor in zip(self.members, self.factors, strict=True):
            for column, part in member.scorer.explain(matrix, names).items():
                total[column] = total.get(column, 0.0) + factor * part
        return total


def save_members(directory: Path, spreads: Mapping[str, float]) -> None:
    """Write the spread of each member by its name."""
    (directory / MEMBERS).write_text(json.dumps({"spreads": dict(spreads)}, indent=1), encoding="utf-8")


def load_members(directory: Path) -> Mapping[str, float]:
    """What `save_members` wrote. Raises EnsembleError, OSError where the file cannot be read."""
    path = directory / MEMBERS
    try:
        spreads: Any = json.loads(path.read_text(encoding="utf-8"))["spreads"]
        found = {str(name): float(spread) for name, spread in spreads.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EnsembleError(f"{path}: the members cannot be read ({error}); train the ranker again") from error
    for name, spread in found.items():
        if Path(name).name != name or not 0 < spread < math.inf:
            raise EnsembleError(f"{path}: found member {name!r} with spread {spread}; train the ranker again")
    return found
