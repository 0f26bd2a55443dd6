"""What rankers learn from: rows of (request, item) with their gains, and every column as it was at that moment.

With impressions the rows are what was shown. Without, positives are observed and negatives are drawn: items that the
sources retrieved at that moment and the user did not act on, and a few available ones at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shortlist.events.labelling import LabelledRows, join_labels
from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import EventLog
from shortlist.events.schema import EventSchema
from shortlist.features.columns import Columns, Rows
from shortlist.features.context import Context, context_of
from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.runner import Pipeline
from shortlist.project import Project
from shortlist.training.backtest import Past, Progress, ask, filtered
from shortlist.training.requests import Positives, Requests

RETRIEVED, RANDOM = 80, 20
"""Negatives of a request to learn from: drawn from what was retrieved, and from the whole catalogue."""
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Known:
    """Everyone that a log names, by index."""

    users: Entities
    items: Entities


@dataclass(frozen=True)
class Judged:
    """Rows to learn from, those of one request side by side, requests in log order.

    `request` numbers the requests, some of which may have no row; `position` and `now` are those of the request.
    `rank` is the place at which the item was shown (1 is the top, NaN unknown), `actions` says by kind what followed;
    `amounts` by kind how much of it, where that was asked for (NaN where there was none); there are none of both where
    nothing was shown. `context` are the declared values of the rows' requests by name.
    `left_out` counts older rows beyond the limit, `unclosed` impressions whose delay window is still open, `unreadable`
    those whose context is no JSON object.
    """

    user: Hashes
    item: Hashes
    request: NDArray[np.int64]
    position: NDArray[np.int64]
    now: NDArray[np.int64]
    gain: NDArray[np.float64]
    rank: NDArray[np.float64]
    actions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    left_out: int = 0
    unclosed: int = 0
    context: Context = field(default_factory=dict)
    unreadable: int = 0
    amounts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.gain)

    def followed_by(self, others: Judged) -> Judged:
        """These rows and then the others, whose requests are numbered on. Both were drawn: nobody knows a context."""
        next_request = int(self.request.max(initial=-1)) + 1
        return Judged(
            np.concatenate([self.user, others.user]),
            np.concatenate([self.item, others.item]),
            np.concatenate([self.request, others.request + next_request]),
            np.concatenate([self.position, others.position]),
            np.concatenate([self.now, others.now]),
            np.concatenate([self.gain, others.gain]),
            np.concatenate([self.rank, others.rank]),
            {name: np.concatenate([held, others.actions[name]]) for name, held in self.actions.items()},
            self.left_out + others.left_out,
            self.unclosed + others.unclosed,
        )


def everyone(log: EventLog, project: Project, stop: int) -> Known:
    """The users and items that the first `stop` events name."""
    known = Known(Entities(project.user), Entities(project.item))
    for batch in log.scan(0, stop):
        known.users.update(batch)
        known.items.update(batch)
    return known


def observed_positives(log: EventLog, project: Project, known: Known, stop: int) -> Positives:
    """What users acted on in the first `stop` events, whether or not it was seen as an impression before."""
    labels = project.labels
    acted = labels if isinstance(labels, ObservedPositives) else ObservedPositives(labels.gains)
    rows = join_labels(log, acted, project.user.name, project.item.name, 0, stop)
    users, items = (held.index_of(ids) for held, ids in ((known.users, rows.user), (known.items, rows.item)))
    order = np.argsort(rows.position, kind="stable")
    return Positives(users[order], items[order], rows.position[order], rows.now[order], rows.gain[order])


def shown(
    log: EventLog,
    project: Project,
    labels: Labels,
    start: int,
    stop: int,
    seed: int,
    most: int = MOST_ROWS,
    amounts: Mapping[EventSchema, str] | None = None,
) -> Judged:
    """The impressions between two positions, by slate; at most about `most`, the newest slates.

    All rows of a slate know what was known before its first impression: nothing of the slate itself, as in serving.
    Within a slate they stand in drawn order, or else ties would be broken as the slate was. `amounts` are fields of
    actions that say how much of it there was.
    """
    also = weighed(project, labels)
    rows = join_labels(log, labels, project.user.name, project.item.name, start, stop, also, amounts)
    slate = _slates(rows)
    context, unreadable = context_of(project.context, rows.context)
    order = np.lexsort((np.random.default_rng(seed).random(len(slate)), slate))
    slate = slate[order]
    first = max(0, len(slate) - most)
    if first:
        first = int(np.searchsorted(slate, slate[first]))
    order, slate = order[first:], slate[first:]
    starts = np.flatnonzero(np.diff(slate, prepend=-1))
    request = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(slate)))
    return Judged(
        hash_strings(rows.user)[order],
        hash_strings(rows.item)[order],
        request,
        slate,
        np.minimum.reduceat(rows.now[order], starts)[request] if len(starts) else rows.now[order],
        rows.gain[order],
        rows.rank[order],
        {kind: happened[order] for kind, happened in rows.actions.items()},
        left_out=first,
        unclosed=rows.left_out,
        context={name: values[order] for name, values in context.items()},
        unreadable=unreadable,
        amounts={kind: amount[order] for kind, amount in rows.amounts.items()},
    )


def weighed(project: Project, labels: Labels) -> list[EventSchema]:
    """What users do with items that the objective weighs though it is no label: to hide one is worth less than nothing.

    Actions without a user and an item cannot be told to belong to an impression.
    """
    return [
        event
        for event in project.events
        if event.kind in project.objective.proxies
        and event not in labels.gains
        and event is not labels.impression
        and {project.user, project.item} <= set(event.keys)
    ]


def blend(project: Project) -> dict[str, float]:
    """What one action of each kind is worth: by the objective's proxies, else by the gain of its label.

    Empty without impressions: which of the actions would have followed is not known then.
    """
    labels, proxies = project.labels, project.objective.proxies
    if not isinstance(labels, Labels):
        return {}
    known = {**labels.gains, **dict.fromkeys(weighed(project, labels), 0.0)}
    return {event.kind: float(proxies.get(event.kind, gain)) for event, gain in known.items()}


def worth(actions: Mapping[str, NDArray[np.bool_]], blend: Mapping[str, float]) -> NDArray[np.float64]:
    """What followed on each row, all in all: below zero where more was lost than won."""
    total: NDArray[np.float64] = np.sum([blend[kind] * happened for kind, happened in actions.items()], axis=0)
    return total


def unheard(project: Project) -> list[str]:
    """The objective's proxies that nothing is learned from, each with the reason."""
    labels = project.labels
    learned = {event.kind for event in labels.gains} | blend(project).keys()
    if isinstance(labels, Labels):
        reason = f"it is nothing that a {project.user.name} does with a {project.item.name} that was shown"
    else:
        reason = "without impressions nobody knows where it would have followed; log some, and declare Labels(...)"
    kinds = [kind for kind in project.objective.proxies if kind not in learned]
    return [f"the objective's proxy {kind!r} is not learned: {reason}" for kind in kinds]


def _slates(rows: LabelledRows) -> NDArray[np.int64]:
    """The position of the first impression of each row's slate; an impression without a request is its own slate."""
    request = rows.request.dictionary_encode() if not pa.types.is_dictionary(rows.request.type) else rows.request
    codes = request.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.full(len(request.dictionary) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, rows.position)
    return np.where(codes < 0, rows.position, first[codes])


def drawn(
    pipeline: Pipeline,
    past: Past,
    known: Known,
    requests: Requests,
    seed: int,
    progress: Progress,
    whole: NDArray[np.bool_],
) -> Judged:
    """Each request's relevant items among those retrieved, and negatives drawn for it.

    `whole` says of each request whether to take all that was retrieved and nothing at random: rankings of drawn
    negatives do not tell which ranker is better (Krichene and Rendle, On sampled metrics for item recommendation, KDD
    2020).

    Positives that were not retrieved are left out, as are requests without any other: a ranker never meets them, and
    beside negatives that were retrieved they would teach it that what sources overlook is good. What the user saw
    before is in neither: the pipeline's filters dropped it.
    """
    rng = np.random.default_rng(seed)
    items, gains, counts = [], [], []
    for asked in ask(pipeline, past, known.users.ids, requests, "draw negatives", progress):
        part = slice(requests.relevant.offsets[asked.number], requests.relevant.offsets[asked.number + 1])
        relevant, gain = requests.relevant.items[part], requests.relevant.gains[part]
        retrieved = asked.merged.items
        positive = np.isin(relevant, retrieved)
        if not positive.any():
            counts.append(0)
            continue
        negative = rng.permutation(np.setdiff1d(retrieved, relevant))
        if not whole[asked.number]:
            anything = rng.integers(0, len(past.table.entities[known.items.entity.name]), RANDOM).astype(np.int32)
            others = Candidates(np.setdiff1d(anything, np.concatenate([relevant, retrieved])))
            negative = np.concatenate([negative[:RETRIEVED], filtered(pipeline, asked.query, others).items])
        order = rng.permutation(positive.sum() + len(negative))  # or else ties would be broken in favour of positives
        items.append(np.concatenate([relevant[positive], negative])[order])
        gains.append(np.concatenate([gain[positive], np.zeros(len(negative))])[order])
        counts.append(len(order))
    request = np.repeat(np.arange(len(counts)), np.array(counts, np.int64))
    item = np.concatenate([np.empty(0, np.int32), *items])
    return Judged(
        known.users.hashes[requests.user[request]],
        known.items.hashes[item],
        request,
        requests.position[request],
        requests.now[request],
        np.concatenate([np.empty(0), *gains]),
        np.full(len(item), np.nan),
    )


def columns_of(log: EventLog, features: FeatureSet, project: Project, rows: Judged) -> Columns:
    """Every feature of every row, replayed to the moment of its request."""
    ids = {project.user.name: rows.user, project.item.name: rows.item}
    columns = [name for name in features.columns if features.needs(name) <= ids.keys()]
    return replay(log, features, Rows(ids, rows.position, rows.now, rows.context), columns)
