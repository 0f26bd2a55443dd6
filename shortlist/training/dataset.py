"""The rankers' training set: sources fitted on the first part of the past, rows judged behind it, every column."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shortlist.events.labels import Labels
from shortlist.events.log import EventLog
from shortlist.features.table import FeatureTable
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.stages import Source
from shortlist.project import Project
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.specs import Popular, SourceSpec, TwoTower
from shortlist.training.assembly import load_retrieval
from shortlist.training.backtest import LiveColumns, Past, Progress
from shortlist.training.rankers.fitting import NothingToLearnError, RankingData
from shortlist.training.rankers.linear import PlaceEffect
from shortlist.training.requests import Requests, requests_of
from shortlist.training.rows import Judged, blend, columns_of, drawn, everyone, observed_positives, shown, worth
from shortlist.training.sources.beside import with_context
from shortlist.training.sources.fitting import Lesson, fit_source, row_columns
from shortlist.training.split import Split, split_by_time

LATEST = 0.2
"""The share of each user's positives before `Split.sources` that rankers learn from, where there are no impressions."""
ONE_IN = 5
"""One in so many users (by hash) chooses by these positives, and the others learn from them."""
PER_USER_LATEST, PER_USER = 4, 5
MOST_LATEST, MOST_LEARNING, MOST_CHOOSING = 4_000, 4_000, 1_000
"""Requests without impressions, the newest: about 100 rows each to learn from, all that is retrieved to choose by."""
REFRESH_MS = 3_600_000
"""How old popularity may be while the past is asked again; its half-life is days."""


class TrainingError(Exception):
    """Training cannot begin, or its result may not be kept: says what was found and what to do."""


@dataclass(frozen=True)
class Ground:
    """What training stands on: the log up to `stop`, who and what it names, the positives and the split."""

    lesson: Lesson
    split: Split

    @property
    def project(self) -> Project:
        """The project."""
        return self.lesson.project

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """The project's sources, with paths that hold anywhere; popular items where it declares none, because
        something has to be proposed.
        """
        folder, declared = self.project.folder, self.project.sources
        return tuple(s.beside(folder) if isinstance(s, TwoTower) else s for s in declared) or (Popular(),)

    def before(self, stop: int) -> Lesson:
        """What may be learned from the log before `stop`: nothing in it knows of a later event."""
        known = everyone(self.lesson.log, self.project, stop)
        return replace(self.lesson, stop=stop, known=known, positives=self.lesson.positives.between(0, stop))

    def early(self) -> Lesson:
        """What sources may know of while rankers learn how far to believe them.

        With impressions it is what was before them. Without, rankers learn from the newest positives of every user,
        too, and sources from the others (stacking; Wolpert, Neural Networks 1992): a stretch of time shows only those
        who came just then, most of them with little behind them.
        """
        lesson = self.before(self.split.sources)
        if isinstance(self.project.labels, Labels):
            return lesson
        return replace(lesson, positives=lesson.positives.of_each_user(LATEST)[0])


@dataclass(frozen=True)
class FittedSources:
    """The names of the sources that were fitted into `directory`, what is to be reported, and why others were not.

    `seconds` is how long each took to fit, fits on a shorter past included.
    """

    directory: Path
    names: tuple[str, ...]
    figures: Mapping[str, Mapping[str, Any]]
    findings: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class RankerRows:
    """The rankers' rows with every column, split into those to learn from and those to choose by.

    `users` has the user of each row of `choosing`; `places` is what the place at which something is shown does, where
    that is known.
    """

    learning: RankingData
    choosing: RankingData
    users: NDArray[np.uint64]
    left_out: int
    unclosed: int
    unreadable: int
    places: PlaceEffect | None


def survey(project: Project, log: EventLog, seed: int, progress: Progress, position: int | None = None) -> Ground:
    """Look through the log once, up to its end or `position`. Raises TrainingError where there is nothing in it."""
    stop = log.position if position is None else position
    if stop == 0:
        raise TrainingError(
            f"the log of project {project.name!r} is empty; put events into it first: `shortlist ingest FILE`"
        )
    progress("read the log", 0.0)
    known = everyone(log, project, stop)
    if not len(known.items):
        raise TrainingError(
            f"none of the {stop} events of the log names a {project.item.name!r}, so there is nothing to rank; "
            f"ingest events of the kinds {', '.join(schema.kind for schema in project.events)}"
        )
    positives = with_context(observed_positives(log, project, known, stop), log, project, known, stop, seed)
    progress("read the log", 1.0)
    lesson = Lesson(project, project.feature_set(), log, known, positives, stop, seed)
    return Ground(lesson, split_by_time(positives.position, positives.at, stop))


def fit_sources(
    ground: Ground, lesson: Lesson, directory: Path, progress: Progress, earlier: FittedSources | None = None
) -> FittedSources:
    """Fit every source on a part of the log; one that has nothing to learn from is left out, and said so.

    `earlier` are the same sources fitted on less.
    """
    figures: dict[str, Mapping[str, Any]] = {}
    findings: list[str] = []
    seconds = {} if earlier is None else dict(earlier.seconds)
    for spec in ground.sources:
        place, begun = directory / "sources" / spec.name, time.perf_counter()
        try:
            before = None if earlier is None else earlier.figures.get(spec.name)
            figures[spec.name] = fit_source(spec, lesson, place, before, progress)
            seconds[spec.name] = seconds.get(spec.name, 0.0) + time.perf_counter() - begun
            findings += unasked(spec, ground.project)
        except NothingToLearnError as error:
            shutil.rmtree(place, ignore_errors=True)
            findings.append(f"source {spec.name} was left out: {error}")
    if not figures:
        figures[Popular().name] = fit_source(Popular(), lesson, directory, None, progress)
    return FittedSources(directory, tuple(figures), figures, tuple(findings), seconds)


def unasked(spec: SourceSpec, project: Project) -> list[str]:
    """The context that a source declares and cannot learn from, with the reason."""
    names = ", ".join(spec.context) if isinstance(spec, TwoTower) else ""
    if not names or isinstance(project.labels, Labels):
        return []
    reason = "without impressions nobody knows what a request said; log some, and declare Labels(...)"
    return [f"source {spec.name} does not look at the context ({names}): {reason}"]


def pipeline_of(ground: Ground, sources: FittedSources, table: FeatureTable) -> tuple[Pipeline, Source]:
    """The stages of a pipeline over a table that follows the past, and the source of all popular items.

    Scorers are put in by whoever asks.
    """
    retrieval = load_retrieval(ground.project, sources.directory, sources.names, table, refresh_ms=REFRESH_MS)
    columns = LiveColumns(Catalogue(table, ground.project.item.name), ground.project.user.name)
    pipeline = Pipeline(
        table.entities[ground.project.item.name],
        understand=retrieval.understand,
        sources=retrieval.sources,
        merger=retrieval.merger,
        filters=retrieval.filters,
        hydrators=(columns, *retrieval.hydrators),
    )
    return pipeline, retrieval.popular


def past_requests(ground: Ground) -> Iterator[tuple[Requests, NDArray[np.bool_]]]:
    """Where nobody knows what was shown: requests to learn from and, of each, whether it is to choose by instead.

    The newest positives of every user before `Split.sources` (see `Ground.early`), some users' to choose by; then the
    stretch of time behind it to learn from, and the next one to choose by. A service answers those who have a history
    and those who have just come, so both kinds have a say.
    """
    lesson, split, between = ground.lesson, ground.split, ground.lesson.positives.between
    latest = requests_of(between(0, split.sources).of_each_user(LATEST)[1], PER_USER_LATEST, MOST_LATEST)
    yield latest, lesson.known.users.hashes[latest.user] % np.uint64(ONE_IN) == 0
    learning = requests_of(between(split.sources, split.rankers), PER_USER, MOST_LEARNING)
    yield learning, np.zeros(len(learning), np.bool_)
    choosing = requests_of(between(split.rankers, split.cut), PER_USER, MOST_CHOOSING)
    yield choosing, np.ones(len(choosing), np.bool_)


def ranker_rows(ground: Ground, sources: FittedSources, past: Past, progress: Progress) -> RankerRows:
    """Judge rows that `sources` were not fitted on, and give them every column that serving will have.

    With impressions the table of `past` stays where it is; without, it is brought forward to the last request.
    """
    split, labels, lesson = ground.split, ground.project.labels, ground.lesson
    if isinstance(labels, Labels):
        rows = shown(lesson.log, ground.project, labels, split.sources, split.cut, lesson.seed)
        choosing = rows.position >= split.rankers
    else:
        pipeline, _ = pipeline_of(ground, sources, past.table)
        parts = []
        for requests, choose in past_requests(ground):
            part = drawn(pipeline, past, lesson.known, requests, lesson.seed, progress, choose)
            parts.append((part, choose[part.request]))
        rows = reduce(Judged.followed_by, (part for part, _ in parts))
        choosing = np.concatenate([choose for _, choose in parts])
    progress("replay features", 0.0)
    matrix, names = matrix_of(ground, sources, rows)
    progress("replay features", 1.0)
    weights, gain = blend(ground.project), rows.gain
    if rows.actions:  # an order gains nothing by what is worth less than nothing
        gain = np.maximum(worth(rows.actions, weights), 0.0)
    data = RankingData(
        matrix, names, gain, rows.request, rows.rank, rows.actions, weights, not isinstance(labels, Labels)
    )
    learning = data.take(~choosing)
    return RankerRows(
        learning,
        data.take(choosing),
        rows.user[choosing],
        rows.left_out,
        rows.unclosed,
        rows.unreadable,
        PlaceEffect.of(learning, lesson.seed) if learning.placed else None,
    )


def matrix_of(ground: Ground, sources: FittedSources, rows: Judged) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The feature block of rows, shape (features, rows), and its names: replayed columns, then those of the sources."""
    lesson = ground.lesson
    read = columns_of(lesson.log, lesson.features, ground.project, rows)
    blocks: list[NDArray[np.float64]] = [read.values]
    names: Sequence[str] = read.names
    for spec in ground.sources:
        if spec.name in sources.names:
            said = row_columns(spec, lesson, sources.directory / "sources" / spec.name, rows)
            blocks += [column[None, :] for column in said.values()]
            names = (*names, *said)
    return np.concatenate(blocks), tuple(names)


def write_dataset(project: Project, log: EventLog, out: Path, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """Write the rankers' training set as Parquet; the number of rows and the columns.

    Columns: `part` ("learning" or "choosing"), `request` (a number), `gain`, then the features.
    """
    ground = survey(project, log, seed, progress)
    with tempfile.TemporaryDirectory() as place:
        sources = fit_sources(ground, ground.early(), Path(place), progress)
        past = Past(log, FeatureTable(ground.lesson.features))
        rows = ranker_rows(ground, sources, past, progress)
    parts = []
    for name, data in (("learning", rows.learning), ("choosing", rows.choosing)):
        columns: dict[str, Any] = {"part": pa.array([name] * len(data.gain)), "request": data.group, "gain": data.gain}
        parts.append(pa.table({**columns, **dict(zip(data.names, data.matrix, strict=True))}))
    table = pa.concat_tables(parts)
    pq.write_table(table, out)
    return table.num_rows, table.column_names
