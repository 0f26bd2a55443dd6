"""Rules about chosen items: what they mean now, and the stages that exclude and propose them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from shortlist.features.entities import Entities
from shortlist.features.hashing import hash_strings
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Merger
from shortlist.slate.specs import Target, moment_ms
from shortlist.slate.values import Condition, Items, Mask

ADDED = "pinned"
"""The column, 1, of candidates that no source proposed: they are there because a pin names them."""


def proposed(candidates: Candidates) -> Mask:
    """True for the candidates that are there for themselves, not only because a pin names them."""
    added = candidates.columns.get(ADDED)
    return np.ones(len(candidates), np.bool_) if added is None else np.isnan(added)


class Chosen:
    """The items that a rule is about, while it holds."""

    def __init__(self, target: Target, entities: Entities) -> None:
        self.ids = tuple(dict.fromkeys(target.items))
        self.entities = entities
        self._hashes = hash_strings(self.ids)
        self._condition = None if target.where is None else Condition(entities, target.where)
        self._since = -math.inf if target.since is None else moment_ms(target.since)
        self._until = math.inf if target.until is None else moment_ms(target.until)

    def holds_at(self, now: int) -> bool:
        """Whether `now` (ms UTC) lies in the rule's time."""
        return self._since <= now < self._until

    def among(self, query: Query, candidates: Candidates) -> Mask:
        """True for each candidate that is meant; none outside the rule's time. Own items are compared by id."""
        if not self.holds_at(query.now):
            return np.zeros(len(candidates), np.bool_)
        if self._condition is not None:
            return self._condition.holds(candidates.items, query.now)
        if candidates.own is not None and query.items is not None:
            named = set(self.ids)
            return np.array([query.items[place] in named for place in candidates.own.tolist()], np.bool_)
        return np.isin(candidates.items, self.known())

    def known(self) -> Items:
        """The index of each named item that the catalogue knows, in the order in which they are named."""
        found = self.entities.index_of(self._hashes)
        return found[found >= 0]

    def in_order(self, query: Query, candidates: Candidates) -> list[int]:
        """The candidates that are named, in that order; for a condition all that it holds for, in theirs."""
        chosen = np.flatnonzero(self.among(query, candidates)).tolist()
        if self._condition is not None:
            return chosen
        if candidates.own is not None and query.items is not None:
            named = [self.ids.index(query.items[candidates.own[candidate]]) for candidate in chosen]
        else:
            known = self.known().tolist()
            named = [known.index(candidates.items[candidate]) for candidate in chosen]
        return [candidate for _, candidate in sorted(zip(named, chosen, strict=True))]


class RuledOut:
    """The filter that drops what a rule excludes."""

    def __init__(self, name: str, chosen: Chosen) -> None:
        self.name, self.chosen = name, chosen

    def keep(self, query: Query, candidates: Candidates) -> Mask:
        """True for what the rule is not about, and for everything outside its time."""
        return ~self.chosen.among(query, candidates)


class Pinned:
    """The source that proposes the items which are pinned by name: they need no other source to find them."""

    name = "pinned"

    def __init__(self, pins: Sequence[Chosen]) -> None:
        self.pins = tuple(pins)

    def propose(self, query: Query) -> Candidates:
        """What is pinned now, in the order of the rules."""
        held = [pin.known() for pin in self.pins if pin.holds_at(query.now)]
        items = np.concatenate([np.empty(0, np.int32), *held])
        _, first = np.unique(items, return_index=True)
        return Candidates(items[np.sort(first)])


class WithPinned:
    """The merger that gives what is pinned room beside the list that another merger makes, however full that is."""

    def __init__(self, merger: Merger) -> None:
        self.merger, self.name = merger, merger.name

    def merge(self, query: Query, proposals: Mapping[str, Candidates]) -> Candidates:
        """What the other merger makes of the other sources, and what is pinned and not among it."""
        merged = self.merger.merge(query, {name: found for name, found in proposals.items() if name != Pinned.name})
        pinned = proposals.get(Pinned.name)
        if pinned is None:
            return merged
        added = pinned.take(~np.isin(pinned.items, merged.items))
        return merged.followed_by(added.describe({ADDED: np.ones(len(added))}))
