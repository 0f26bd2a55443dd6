"""Exploration: places given to candidates that are drawn, each with the probability that it was.

Every slot draws from a part of the pool of its own, so draws are independent of each other, nothing is drawn twice,
and the probability of an item at its place is that of one draw, whatever the other slots drew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from shortlist.pipeline.candidates import Column
from shortlist.slate.constraints import Capped
from shortlist.slate.draft import Draft, Indexes
from shortlist.slate.specs import Explore


def pool_of(spec: Explore, draft: Draft, caps: Sequence[Capped]) -> Indexes:
    """The candidates that may be drawn, best first: free, with a score, within every cap, proposed by the source.

    Where better ones are likelier to be drawn, those that would stand there anyway take part: a place then is given
    away where that costs little.
    """
    open_ = draft.free & draft.rated
    for cap in caps:
        open_ &= cap.allows(-1)
    if spec.among is not None:
        anyway = np.flatnonzero(open_)[: 0 if spec.temperature is None else draft.drawn]
        ranks = draft.candidates.columns.get(f"{spec.among}_rank")
        open_ &= False if ranks is None else ~np.isnan(ranks)
        open_[anyway] = open_.any()
    return np.flatnonzero(open_)[: spec.most]


def parts_of(pool: Indexes, slots: int, caps: Sequence[Capped]) -> list[Indexes]:
    """The pool in as many parts as there are slots, fewer where it does not suffice, evenly by relevance.

    Of values that a cap leaves little room for, candidates stand in few parts: whatever is drawn, no cap is exceeded.
    A candidate that fits into no part is left out.
    """
    if slots == 1 or not caps:
        return [pool[slot::slots] for slot in range(min(slots, len(pool)))]
    parts: list[list[int]] = [[] for _ in range(slots)]
    holding: defaultdict[tuple[int, Any], set[int]] = defaultdict(set)
    for candidate in pool.tolist():
        room = {(n, value): left for n, cap in enumerate(caps) for value, left in cap.room(candidate).items()}
        fitting = [
            part
            for part in range(slots)
            if all(part in holding[value] or len(holding[value]) < left for value, left in room.items())
        ]
        if fitting:
            part = min(fitting, key=lambda one: len(parts[one]))
            parts[part].append(candidate)
            for value in room:
                holding[value].add(part)
    return [np.array(part) for part in parts if part]


def draw(spec: Explore, draft: Draft, part: Indexes, slot: int) -> tuple[int, float]:
    """A candidate of the part, and the probability with which it is drawn; the same for the same request and slot."""
    odds = odds_of(spec, draft.relevance[part])
    below = np.cumsum(odds)
    chosen = min(int(below.searchsorted(uniform(draft.query.request, slot) * below[-1], side="right")), len(part) - 1)
    return int(part[chosen]), float(odds[chosen] / below[-1])


def odds_of(spec: Explore, relevance: Column) -> Column:
    """How likely each candidate is, relative to the others."""
    if spec.temperature is None:
        return np.ones(len(relevance))
    return np.asarray(np.exp((relevance - relevance.max()) / spec.temperature), np.float64)


def uniform(request: str, slot: int) -> float:
    """A number of [0, 1) that is always the same for a request and a slot, and looks random over requests."""
    digest = blake2b(f"{slot} {request}".encode(), digest_size=8, person=b"slate").digest()
    return (int.from_bytes(digest) >> 11) / 2**53
