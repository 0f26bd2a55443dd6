"""Sources are fitted on a part of the log and write what serving needs into a directory of the release."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial, singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.labels import Labels
from shortlist.events.log import EventLog
from shortlist.features.columns import Rows
from shortlist.features.context import Context, taken
from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.framing.durations import duration_ms
from shortlist.pipeline.candidates import Column
from shortlist.project import Project
from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.models.item_tower import ItemTower
from shortlist.retrieval.models.item_weights import ItemWeights, columns_of
from shortlist.retrieval.models.machine import Machine
from shortlist.retrieval.models.sentences import ENCODER, TOKENIZER, SentenceEncoder, vectors_of
from shortlist.retrieval.models.towers import AttributeColumn, Towers, attributes_of, words_said
from shortlist.retrieval.models.words import words_of
from shortlist.retrieval.specs import (
    FactorizationMachine,
    Fresh,
    HistorySpec,
    MatrixFactorisation,
    Popular,
    TwoTower,
)
from shortlist.retrieval.vectors.live_items import Describer
from shortlist.retrieval.vectors.nearest import VectorModel
from shortlist.training.backtest import Progress
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.requests import Positives
from shortlist.training.rows import Judged, Known, blend, shown
from shortlist.training.sources.beside import led_to, shown_beside
from shortlist.training.sources.factors import fit_factors
from shortlist.training.sources.item_weights import Interactions, fit_item_weights
from shortlist.training.sources.machine import MOST_IMPRESSIONS, fit_machine

if TYPE_CHECKING:
    from shortlist.training.towers.data import TowerExamples

MOST_EXAMPLES = 1_000_000
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


Figures = Mapping[str, Any]
"""What is reported of a source, as JSON."""


@singledispatch
def fit_source(
    spec: object,
    lesson: Lesson,
    directory: Path,  # noqa: ARG001
    earlier: Figures | None,  # noqa: ARG001
    progress: Progress,  # noqa: ARG001
) -> Figures:
    """Fit the source that `spec` declares and write its directory; returns its figures.

    `earlier` are those of the same source fitted on a shorter past: what was found out then need not be found again.
    Raises NothingToLearnError where the lesson is too short.
    """
    raise TypeError(f"no source is fitted by {spec!r} of {lesson.project.name}")


@fit_source.register
def _(
    spec: Popular | Fresh,
    lesson: Lesson,  # noqa: ARG001
    directory: Path,  # noqa: ARG001
    earlier: Figures | None,  # noqa: ARG001
    progress: Progress,
) -> Figures:
    progress(f"fit {spec.name}", 1.0)
    # they read features and the order of the catalogue: there is nothing to fit and nothing to store
    return {"half_life": spec.half_life} if isinstance(spec, Popular) else {}


@fit_source.register
def _(spec: TwoTower, lesson: Lesson, directory: Path, earlier: Figures | None, progress: Progress) -> Figures:
    try:
        from shortlist.training.towers.data import TowerItems  # torch takes a second, and only towers need it
        from shortlist.training.towers.fitting import fit_towers
    except ModuleNotFoundError as error:
        raise NothingToLearnError(f"{error.name} is not installed; run: pip install 'shortlist[training]'") from error
    examples = examples_of(spec, lesson)
    items = lesson.known.items
    attributes = attributes_of(items, spec.item_attributes, items.hashes)
    epochs = None if earlier is None else int(earlier["epochs"])
    try:
        attributes |= texts_of(spec, items, directory)
        report = fit_towers(
            spec, examples, TowerItems(items.hashes, attributes), directory, lesson.seed, progress, epochs
        )
    except ValueError as error:
        raise NothingToLearnError(str(error)) from error
    return {**asdict(report), "examples_left_out": len(lesson.positives) - len(examples)}


@fit_source.register
def _(spec: HistorySpec, lesson: Lesson, directory: Path, earlier: Figures | None, progress: Progress) -> Figures:
    weights, figures = fit_item_weights(
        spec, interactions(lesson), lesson.seed, earlier, partial(progress, f"fit {spec.name}")
    )
    weights.save(directory)
    return figures


@fit_source.register
def _(
    spec: MatrixFactorisation, lesson: Lesson, directory: Path, earlier: Figures | None, progress: Progress
) -> Figures:
    factors, figures = fit_factors(
        spec, interactions(lesson), lesson.seed, earlier, partial(progress, f"fit {spec.name}")
    )
    factors.save(directory)
    return figures


@fit_source.register
def _(
    spec: FactorizationMachine,
    lesson: Lesson,
    directory: Path,
    earlier: Figures | None,  # noqa: ARG001  # it chooses nothing
    progress: Progress,
) -> Figures:
    labels = lesson.project.labels
    if not isinstance(labels, Labels):
        raise NothingToLearnError(
            "it learns from what was shown and not acted on, and nobody knows what was shown; declare "
            "Labels(impression, ...), or use MatrixFactorisation(...)"
        )
    rows = shown(lesson.log, lesson.project, labels, 0, lesson.stop, lesson.seed, MOST_IMPRESSIONS, spec.amounts)
    against = [kind for kind, weight in blend(lesson.project).items() if weight < 0]
    step = partial(progress, f"fit {spec.name}")
    machine, figures = fit_machine(spec, rows, lesson.known, lesson.seed, step, against)
    machine.save(directory)
    return figures


def interactions(lesson: Lesson) -> Interactions:
    """Who acted on what in the lesson."""
    found, known = lesson.positives, lesson.known
    return Interactions.of(known.users.hashes[found.user], known.items.hashes[found.item], found.position)


def texts_of(spec: TwoTower, items: Entities, directory: Path) -> Mapping[str, AttributeColumn]:
    """What every item's texts say: words, or vectors of an encoder that is written to `directory` for serving."""
    if spec.text_encoder is None:
        return words_of(items, spec.item_text, items.hashes)
    from shortlist.training.towers.sentence_model import write_sentence_encoder

    folder = Path(spec.text_encoder)
    if not (folder / TOKENIZER).exists():
        raise ValueError(f"{folder} holds no sentence encoder: it has no {TOKENIZER}")
    directory.mkdir(parents=True, exist_ok=True)
    write_sentence_encoder(folder, directory / ENCODER)
    shutil.copyfile(folder / TOKENIZER, directory / TOKENIZER)
    return vectors_of(items, spec.item_text, items.hashes, SentenceEncoder.load(directory))


def examples_of(spec: TwoTower, lesson: Lesson) -> TowerExamples:
    """The newest positives, each with what was known of its user strictly before.

    Where impressions are logged, that is before the slate that led to it, as when serving: who clicks and then watches
    has a click behind them that no slate knew of. Then also with the context of its request, and what was shown beside.
    """
    from shortlist.training.towers.data import TowerExamples

    every, known, labels = lesson.positives, lesson.known, lesson.project.labels
    found = every.newest(MOST_EXAMPLES)
    users, items = known.users.hashes[found.user], known.items.hashes[found.item]
    position, now = found.position.copy(), found.at.copy()
    context, beside = {}, None
    if isinstance(labels, Labels):
        rows = shown(lesson.log, lesson.project, labels, 0, lesson.stop, lesson.seed)
        everybody = known.users.hashes[every.user], known.items.hashes[every.item]
        led = led_to(rows, *everybody, every.position, every.at, duration_ms(labels.within))
        beside = shown_beside(rows, *everybody, led)[-len(found) :]
        led = led[-len(found) :]
        context, asked = context_at(rows.context, spec.context, led), led >= 0
        position[asked], now[asked] = rows.position[led[asked]], rows.now[led[asked]]
    histories = histories_of(lesson, spec.history.name, users, position, now)
    columns = attributes_of(known.users, spec.user_attributes, users, position) | context
    return TowerExamples(users, histories, items, found.at, columns, beside)


def context_at(context: Context, names: Iterable[str], rows: NDArray[np.int64]) -> dict[str, AttributeColumn]:
    """The context values of some rows, as a tower reads them; row -1 has none of them."""
    columns: dict[str, AttributeColumn] = {}
    for name, values in taken({name: context[name] for name in names}, rows).items():
        columns[name] = values if values.dtype != object else words_said(values.tolist())
    return columns


def histories_of(
    lesson: Lesson, name: str, users: Hashes, position: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The list feature `name` of users at their moments, shape (n, h): hashes, newest first, 0 where it is shorter."""
    read = replay(lesson.log, lesson.features, Rows({lesson.project.user.name: users}, position, now), [name])
    return read.lists[name]


@singledispatch
def row_columns(spec: object, lesson: Lesson, directory: Path, rows: Judged) -> Mapping[str, Column]:  # noqa: ARG001
    """What a fitted source says of the rows that rankers learn from: the columns that it writes when serving."""
    return {}


@row_columns.register
def _(spec: HistorySpec, lesson: Lesson, directory: Path, rows: Judged) -> Mapping[str, Column]:
    model = ItemWeights.load(directory)
    _, first, counts = np.unique(rows.request, return_index=True, return_counts=True)
    histories = histories_of(lesson, spec.history.name, rows.user[first], rows.position[first], rows.now[first])
    items = model.rows_of(rows.item)
    found: dict[str, Column] = {column: np.full(len(rows), np.nan) for column in columns_of(spec.name)}
    for start, count, history in zip(first, counts, histories, strict=True):
        part = slice(start, start + count)
        for column, values in model.says(history).columns(spec.name, items[part]).items():
            found[column][part] = values
    return found


@row_columns.register
def _(
    spec: TwoTower | MatrixFactorisation | FactorizationMachine, lesson: Lesson, directory: Path, rows: Judged
) -> Mapping[str, Column]:
    model, describer = vector_model(spec, directory)
    _, first, request = np.unique(rows.request, return_index=True, return_inverse=True)
    users, position, now = rows.user[first], rows.position[first], rows.now[first]
    histories = np.empty((len(users), 0), np.int64)
    if model.history:
        histories = histories_of(lesson, model.history, users, position, now)
    asked = [name for name in model.columns if name in rows.context]
    columns = attributes_of(lesson.known.users, [name for name in model.columns if name not in asked], users, position)
    columns |= context_at(rows.context, asked, first)
    vectors = model.user_vectors(users, histories, columns)
    says = np.asarray(vectors.any(axis=1))
    items, scores = model.rows_of(rows.item), np.full(len(rows), np.nan)
    for start in range(0, len(rows), BLOCK):
        part = start + np.flatnonzero((items[start : start + BLOCK] >= 0) & says[request[start : start + BLOCK]])
        scores[part] = np.einsum("nd,nd->n", vectors[request[part]], model.index.vectors[items[part]])
    if describer is not None and describer.looks_at:  # when serving, items that are new have a vector too
        new = np.flatnonzero(items < 0)
        for part in (new[start : start + BLOCK] for start in range(0, len(new), BLOCK)):
            made = describer.vectors(lesson.known.items, rows.item[part], rows.position[part])
            scores[part] = np.einsum("nd,nd->n", vectors[request[part]], made)
    return {f"{spec.name}_score": scores}


def vector_model(
    spec: TwoTower | MatrixFactorisation | FactorizationMachine, directory: Path
) -> tuple[VectorModel, Describer | None]:
    """A fitted model of user and item vectors, and what makes the vectors of items that are new to it, if anything."""
    if isinstance(spec, MatrixFactorisation):
        return Factors.load(directory), None
    if isinstance(spec, FactorizationMachine):
        machine = Machine.load(directory)
        return machine, machine
    towers = Towers.load(directory)
    return towers, ItemTower.load(directory, towers)
