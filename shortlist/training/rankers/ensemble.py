"""One ranker made of those that were fitted beside it: how far the scores of each are apart is all it learns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.ensemble import MEMBERS, Ensemble, Member, save_members
from shortlist.ranking.scoring import DESCRIPTION, load_scorer
from shortlist.training.rankers.fitting import Fit, NothingToLearnError, RankingData

LEAST = 1e-12
"""A smaller spread is none: such a ranker gives all items the same score."""


def fit_ensemble(data: RankingData, validation: RankingData | None, directory: Path) -> Fit:
    """Copy the rankers that lie beside `directory` into it, each with its spread on the rows of `data`."""
    beside = sorted(path.parent for path in directory.parent.glob(f"*/{DESCRIPTION}") if path.parent != directory)
    members = []
    for place in (place for place in beside if not (place / MEMBERS).exists()):
        scorer = load_scorer(place)
        spread = spread_within(scorer.margin(data.matrix, data.names), data)
        if spread > LEAST:
            members.append(Member(place.name, scorer, spread))
    if len(members) < 2:
        found = ", ".join(member.name for member in members) or "none"
        raise NothingToLearnError(
            f"an ensemble takes two other rankers at least, and of those declared beside it there is {found}; "
            "declare another one, such as LambdaMART()"
        )
    for member in members:
        shutil.copytree(directory.parent / member.name, directory / member.name)
    save_members(directory, {member.name: member.spread for member in members})
    figures = {f"{member.name}.spread": member.spread for member in members}
    if validation is None:
        return Fit("ensemble", figures)
    scores = Ensemble(members, validation.names).score(validation.matrix, validation.names)
    return Fit("ensemble", figures, scores=scores)


def spread_within(scores: NDArray[np.float64], data: RankingData) -> float:
    """The standard deviation of scores around the means of their requests."""
    request = np.repeat(np.arange(len(data.sizes)), data.sizes)
    means = np.bincount(request, scores) / data.sizes
    return float(np.sqrt(np.mean((scores - means[request]) ** 2)))
