"""How good is a source or ranker with other settings? Fitted before the choosing slice, judged on it, not on the test.

A source is fitted on everything before the slice and judged by NDCG@100 of what it proposes for the slice's requests:
depth, because a ranker comes behind it, and order, because quotas cut. A ranker is fitted and judged on the rows that
training would choose it by.
"""

from __future__ import annotations

import shutil
from collections.abc import Container
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.project import Project
from shortlist.training.backtest import Past, ask
from shortlist.training.dataset import (
    MOST_CHOOSING,
    PER_USER,
    FittedSources,
    Ground,
    RankerRows,
    fit_sources,
    pipeline_of,
    ranker_rows,
)
from shortlist.training.evaluation import Ranked
from shortlist.training.metrics import Floats, by_user, gain_matrix, ndcg
from shortlist.training.rankers.fitting import NothingToLearnError, fit_ranker
from shortlist.training.requests import requests_of
from shortlist.training.sources.fitting import Lesson, fit_source
from shortlist.training.train import validation_ndcg

DEPTH = 100


def quietly(step: str, share: float) -> None:
    """Progress of a single trial, which nobody watches."""


class Part(Protocol):
    """A source or ranker whose settings are tried."""

    metric: str

    @property
    def spec(self) -> Any:
        """As it is declared."""

    def judge(self, spec: Any) -> Floats:
        """How good it is with the settings of `spec`, for each user. Raises NothingToLearnError where it cannot be
        fitted; the users are the same for all settings.
        """


def with_specs(ground: Ground, specs: dict[str, Any]) -> Ground:
    """The same ground for a project whose sources and rankers of these names are declared like this."""
    project = with_declared(ground, specs)
    return replace(ground, lesson=replace(ground.lesson, project=project, features=project.feature_set()))


def with_declared(ground: Ground, specs: dict[str, Any]) -> Project:
    """The project with other declarations of these names."""
    sources = [specs.get(spec.name, spec) for spec in ground.sources]
    return replace(ground.project, sources=sources, rankers=[specs.get(s.name, s) for s in ground.project.rankers])


class Bed:
    """What all trials of one run share: the ground, a folder, the past as of the choosing slice, and rankers' rows."""

    def __init__(self, ground: Ground, directory: Path) -> None:
        self.ground, self.directory = ground, directory
        self._snapshots: dict[str, Path] = {}

    @cached_property
    def lesson(self) -> Lesson:
        """What is known before the choosing slice."""
        return self.ground.before(self.ground.split.rankers)

    @cached_property
    def rows(self) -> RankerRows:
        """The rows of the rankers, with sources as they are declared."""
        ground, place = self.ground, self.directory / "declared"
        sources = fit_sources(ground, ground.early(), place, quietly)
        return ranker_rows(ground, sources, Past(ground.lesson.log, FeatureTable(ground.lesson.features)), quietly)

    def past(self, features: FeatureSet) -> Past:
        """The past at the beginning of the choosing slice. Replayed once for each set of features."""
        table, kept = FeatureTable(features), self._snapshots.get(features.fingerprint)
        if kept is not None:
            table.restore(kept)
            return Past(self.ground.lesson.log, table)
        past = Past(self.ground.lesson.log, table)
        past.advance(self.ground.split.rankers)
        self._snapshots[features.fingerprint] = path = self.directory / f"past-{len(self._snapshots)}"
        table.snapshot(path)
        return past

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        place = self.directory / "trial" / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place


class SourcePart:
    """A source on trial."""

    metric = f"ndcg@{DEPTH}"

    def __init__(self, bed: Bed, spec: Any) -> None:
        self.bed, self.spec = bed, spec

    def judge(self, spec: Any) -> Floats:
        """Fit it before the slice, ask it for the slice's requests."""
        ground, split = with_specs(self.bed.ground, {spec.name: spec}), self.bed.ground.split
        requests = requests_of(ground.lesson.positives.between(split.rankers, split.cut), PER_USER, MOST_CHOOSING)
        if not len(requests):
            raise NothingToLearnError("the choosing slice has no positive to judge by; collect more events")
        place = self.bed.fresh(spec.name)
        lesson = replace(self.bed.lesson, project=ground.project, features=ground.lesson.features)
        figures = fit_source(spec, lesson, place / "sources" / spec.name, None, quietly)
        past = self.bed.past(ground.lesson.features)
        sources = FittedSources(place, (spec.name,), {spec.name: figures}, (), {})
        pipeline, _ = pipeline_of(ground, sources, past.table)
        lists: Ranked = np.full((len(requests), DEPTH), -1, np.int32)
        for asked in ask(pipeline, past, ground.lesson.known.users.ids, requests, "try", quietly):
            found = asked.proposals[spec.name].items[:DEPTH]
            lists[asked.number, : len(found)] = found
        per_request = ndcg(gain_matrix(lists, requests.relevant), requests.relevant, DEPTH)
        users, user = np.unique(requests.user, return_inverse=True)
        return by_user(per_request[:, None], user, len(users))[:, 0]


class RankerPart:
    """A ranker on trial."""

    metric = "ndcg@10"

    def __init__(self, bed: Bed, spec: Any) -> None:
        self.bed, self.spec = bed, spec

    def judge(self, spec: Any) -> Floats:
        """Fit it on the rows that rankers learn from, judge it on those that they are chosen by."""
        rows, place = self.bed.rows, self.bed.fresh(spec.name)
        fit_ranker(spec, rows.learning, rows.choosing, place, self.bed.ground.lesson.seed)
        values = validation_ndcg(place, rows)
        if not len(values):
            raise NothingToLearnError(
                "no request of the choosing slice says which order is better; collect more events"
            )
        return values


def parts_of(bed: Bed, wanted: Container[str]) -> list[Part]:
    """The project's sources, then its rankers, of the wanted names."""
    ground = bed.ground
    sources = [SourcePart(bed, spec) for spec in ground.sources if spec.name in wanted]
    return [*sources, *(RankerPart(bed, spec) for spec in ground.project.rankers if spec.name in wanted)]
