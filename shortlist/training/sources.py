"""Sources are fitted on a part of the log and write what serving needs into a directory of the release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.events.log import EventLog
from shortlist.features.columns import Rows
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.pipeline.candidates import Column
from shortlist.project import Project
from shortlist.retrieval.specs import Popular, TwoTower
from shortlist.retrieval.towers import Towers, attributes_of
from shortlist.training.backtest import Progress
from shortlist.training.requests import Positives
from shortlist.training.rows import Judged, Known

BLOCK = 65_536
"""Rows whose similarities are computed at a time."""


@dataclass(frozen=True)
class Lesson:
    """What a source may learn from: the log before `stop`, and the positives in it."""

    project: Project
    features: FeatureSet
    log: EventLog
    known: Known
    positives: Positives
    stop: int
    seed: int


@singledispatch
def fit_source(spec: object, lesson: Lesson, directory: Path, progress: Progress) -> Mapping[str, Any]:  # noqa: ARG001
    """Fit the source that `spec` declares and write its directory; returns figures for the report, as JSON.

    Raises NothingToLearnError where the lesson is too short.
    """
    raise TypeError(f"no source is fitted by {spec!r} of {lesson.project.name}")


@fit_source.register
def _(spec: Popular, lesson: Lesson, directory: Path, progress: Progress) -> Mapping[str, Any]:  # noqa: ARG001
    progress(f"fit {spec.name}", 1.0)
    return {"half_life": spec.half_life}  # it reads features: there is nothing to fit and nothing to store


@singledispatch
def row_columns(spec: object, lesson: Lesson, directory: Path, rows: Judged) -> Mapping[str, Column]:  # noqa: ARG001
    """What a fitted source says of the rows that rankers learn from: the columns that it writes when serving."""
    return {}


@row_columns.register
def _(spec: TwoTower, lesson: Lesson, directory: Path, rows: Judged) -> Mapping[str, Column]:
    towers, user = Towers.load(directory), lesson.project.user.name
    _, first = np.unique(rows.request, return_index=True)
    users, position, now = rows.user[first], rows.position[first], rows.now[first]
    read = replay(lesson.log, lesson.features, Rows({user: users}, position, now))
    held = [column for column in towers.columns if column in lesson.known.users.attributes]
    columns = attributes_of(lesson.known.users, held, users, position)
    vectors = towers.user_vectors(users, read[towers.history], columns)
    items, scores = towers.rows_of(rows.item), np.full(len(rows), np.nan)
    for start in range(0, len(rows), BLOCK):
        part = start + np.flatnonzero(items[start : start + BLOCK] >= 0)
        scores[part] = np.einsum("nd,nd->n", vectors[rows.request[part]], towers.item_vectors[items[part]])
    return {f"{spec.name}_score": scores}
