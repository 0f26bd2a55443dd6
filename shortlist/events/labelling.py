"""Labels joined to what they label: which impressions were acted on, and what that was worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shortlist.events.batch import Batch
from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import EventLog
from shortlist.events.schema import EventSchema
from shortlist.framing.durations import duration_ms

COMPARISONS: Mapping[str, Callable[[pa.Array, Any], pa.Array]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "in": lambda values, wanted: pc.is_in(values, pa.array(list(wanted), values.type)),
}


SHOWN = np.inf
"""In place of a gain: the event is an impression."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows with their labels, in log order, one value per row.

    `position` is the offset of the event that made the row: what was known is everything strictly before it. `now` is
    its time in ms UTC. `gain` is 0 for shown and not acted on. `request` names the slate (null without impressions),
    `rank` the place in it (1 is the top; NaN where it is not known), `context` what its request said of itself, as text
    (null where nothing). `actions` says by kind on which rows it happened, `amounts` how much of it, where that was
    asked for (the greatest; NaN where there was none); without impressions there are none of both. `left_out` counts
    the impressions whose window was still open at the end of the log: their label is not known yet.
    """

    user: pa.Array
    item: pa.Array
    position: NDArray[np.int64]
    now: NDArray[np.int64]
    gain: NDArray[np.float64]
    request: pa.Array
    rank: NDArray[np.float64]
    context: pa.Array
    actions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    left_out: int = 0
    amounts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position)


def join_labels(
    log: EventLog,
    labels: Labels | ObservedPositives,
    user: str,
    item: str,
    start: int = 0,
    stop: int | None = None,
    also: Sequence[EventSchema] = (),
    amounts: Mapping[EventSchema, str] | None = None,
) -> LabelledRows:
    """The labels of the events at offsets from `start` up to, not including, `stop` (default: all that are known).

    With impressions: an action is attributed to the latest impression of the same user and item that happened at or
    before it and at most `within` ago, both by event time. An impression's gain is the largest of its actions' gains,
    0 without any. Only actions before `stop` count, and impressions whose window ends after the last `received` before
    `stop` are left out: what is asked about a past position never knows what came later. `also` are further kinds of
    actions that are noted and worth nothing; `amounts` are numeric fields of actions that say how much of it there was.

    Without impressions: one row per action that satisfies `where`, with its kind's gain.
    """
    end = log.position if stop is None else min(stop, log.position)
    if isinstance(labels, ObservedPositives):
        return observed(log, labels, user, item, start, end)
    noted = [schema for schema in (*also, *(amounts or {})) if schema not in labels.gains]
    gains = {**labels.gains, **dict.fromkeys(noted, 0.0)}
    return attributed(log, replace(labels, gains=gains), user, item, start, end, amounts or {})


@dataclass
class Events:
    """The events that a join needs, one value per event."""

    user: pa.Array
    item: pa.Array
    request: pa.Array
    context: pa.Array
    position: NDArray[np.int64]
    at: NDArray[np.int64]
    gain: NDArray[np.float64]
    kind: NDArray[np.int16]
    numbers: Mapping[str, NDArray[np.float64]]
    closed_by: int


def gather(
    log: EventLog,
    columns: Sequence[str],
    keys: tuple[str, str, str | None, str | None],
    gain_of: Callable[[Batch], NDArray[np.float64]],
    span: tuple[int, int],
    kinds: Sequence[str] = (),
    numeric: Sequence[str] = (),
) -> Events:
    """Collect the events whose gain is not NaN; `keys` are the columns of user, item, request and context,
    `numeric` further ones that are read as numbers.

    The kind of an event is its place in `kinds`, -1 where it is not among them.
    """
    texts: tuple[list[pa.Array], ...] = ([], [], [], [])
    parts: tuple[list[NDArray[Any]], ...] = ([], [], [], [])
    numbers: dict[str, list[NDArray[np.float64]]] = {name: [] for name in numeric}
    closed_by = -1
    for batch in log.scan(*span, columns=columns):
        gain = gain_of(batch)
        chosen = np.flatnonzero(~np.isnan(gain))
        rows = pa.array(chosen)
        for found, key in zip(texts, keys, strict=True):
            found.append(pa.nulls(len(rows), pa.string()) if key is None else batch.strings(key).take(rows))
        each_event: tuple[NDArray[Any], ...] = (batch.offset, batch.at, gain, kinds_of(batch, kinds))
        for kept, values in zip(parts, each_event, strict=True):
            kept.append(values[chosen])
        for name, each in numbers.items():
            each.append(batch.numbers(name)[chosen])
        closed_by = max(closed_by, int(batch.received.max()))
    user, item, request, context = (pa.chunked_array(found, pa.string()).combine_chunks() for found in texts)
    types = (np.int64, np.int64, np.float64, np.int16)
    position, at, gains_, kind = (
        np.concatenate([np.empty(0, type_), *part]) for type_, part in zip(types, parts, strict=True)
    )
    read = {name: np.concatenate([np.empty(0), *each]) for name, each in numbers.items()}
    return Events(user, item, request, context, position, at, gains_, kind, read, closed_by)


def kinds_of(batch: Batch, kinds: Sequence[str]) -> NDArray[np.int16]:
    """Each event's place in `kinds`, -1 where it is of another kind."""
    codes = np.full(len(batch), -1, np.int16)
    for code, kind in enumerate(kinds):
        codes[batch.of_kind(kind)] = code
    return codes


def observed(log: EventLog, labels: ObservedPositives, user: str, item: str, start: int, stop: int) -> LabelledRows:
    """One row per action: there is nothing that was shown and not acted on."""
    condition = labels.where
    tested = [schema.column(condition[0]) for schema in labels.gains if condition and condition[0] in schema.fields]

    def gain_of(batch: Batch) -> NDArray[np.float64]:
        return gains(batch, labels.gains, condition)

    found = gather(log, [user, item, *tested], (user, item, None, None), gain_of, (start, stop))
    nowhere = np.full(len(found.position), np.nan)
    return LabelledRows(
        found.user, found.item, found.position, found.at, found.gain, found.request, nowhere, found.context
    )


def attributed(
    log: EventLog, labels: Labels, user: str, item: str, start: int, stop: int, amounts: Mapping[EventSchema, str]
) -> LabelledRows:
    """One row per impression whose window is closed."""
    shown_kind = labels.impression.kind
    request = labels.impression.column("request")

    def gain_of(batch: Batch) -> NDArray[np.float64]:
        return np.where(batch.of_kind(shown_kind), SHOWN, gains(batch, labels.gains, None))

    rank, context = (
        labels.impression.column(name) if name in labels.impression.fields else None for name in ("position", "context")
    )
    kinds = [schema.kind for schema in labels.gains]
    fields = {schema.kind: schema.column(name) for schema, name in amounts.items()}
    numeric = [*fields.values(), *([rank] if rank else [])]
    columns = [user, item, request, *numeric, *([context] if context else [])]
    found = gather(log, columns, (user, item, request, context), gain_of, (start, stop), kinds, numeric)
    within = duration_ms(labels.within)
    shown = found.gain == SHOWN
    pairs = attribute(pair_codes(found.user, found.item), found.at, found.position, shown, within)
    gain = np.zeros(len(shown))
    np.maximum.at(gain, pairs.impression, found.gain[pairs.action])
    happened = np.zeros((len(kinds), len(shown)), np.bool_)
    happened[found.kind[pairs.action], pairs.impression] = True
    amount = {kind: np.full(len(shown), np.nan) for kind in fields}
    for kind, column in fields.items():
        np.fmax.at(amount[kind], pairs.impression, found.numbers[column][pairs.action])
    closed = found.at + within <= found.closed_by
    rows = np.flatnonzero(shown & closed)
    place = found.numbers[rank] if rank else np.full(len(shown), np.nan)
    texts = (found.user, found.item, found.request, found.context)
    user_, item_, request_, context_ = (column.take(pa.array(rows)) for column in texts)
    return LabelledRows(
        user_,
        item_,
        found.position[rows],
        found.at[rows],
        gain[rows],
        request_,
        place[rows],
        context_,
        {kind: happened[code, rows] for code, kind in enumerate(kinds)},
        left_out=int((shown & ~closed).sum()),
        amounts={kind: amount[kind][rows] for kind in fields},
    )


def gains(
    batch: Batch, by_kind: Mapping[EventSchema, float], where: tuple[str, str, Any] | None
) -> NDArray[np.float64]:
    """Each event's gain; NaN where it is no such action, or does not satisfy `where`."""
    found = np.full(len(batch), np.nan)
    for schema, gain in by_kind.items():
        mask = batch.of_kind(schema.kind)
        if where is not None and where[0] in schema.fields:
            holds = COMPARISONS[where[1]](batch.strings(schema.column(where[0])), where[2])
            mask = mask & pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
        found[mask] = gain
    return found


def pair_codes(user: pa.Array, item: pa.Array) -> NDArray[np.int64]:
    """A number per (user, item), the same for the same pair."""
    users, items = (column.dictionary_encode() for column in (user, item))
    user_codes, item_codes = (column.indices.to_numpy(zero_copy_only=False) for column in (users, items))
    codes: NDArray[np.int64] = user_codes.astype(np.int64) * max(1, len(items.dictionary)) + item_codes
    return codes


class Pairs(NamedTuple):
    """Places of impressions and of the actions that belong to them."""

    impression: NDArray[np.intp]
    action: NDArray[np.intp]


def attribute(
    pair: NDArray[np.int64],
    at: NDArray[np.int64],
    position: NDArray[np.int64],
    shown: NDArray[np.bool_],
    within: int,
) -> Pairs:
    """Which actions belong to which impressions; impressions are the events that are `shown`, the others are actions.

    Sorted by pair and time (an impression before an action of the same millisecond), the latest impression before an
    action is the last one seen: a running maximum of places.
    """
    order = np.lexsort((position, ~shown, at, pair))
    places = np.where(shown[order], np.arange(len(order)), -1)
    latest = np.maximum.accumulate(places) if len(places) else places
    action = np.flatnonzero(~shown[order] & (latest >= 0))
    impression, action = order[latest[action]], order[action]
    belongs = (pair[impression] == pair[action]) & (at[action] - at[impression] <= within)
    return Pairs(impression[belongs], action[belongs])
