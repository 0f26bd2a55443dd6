"""The selector that makes slates by rules: place by place, the best candidate that every constraint allows.

First boosts change relevance, then pins take their places, then the others are filled from the top; the objective
says what is best, and constraints, in the order in which they were declared, what is allowed. One that would leave
nobody is waived at that place. Draws come last, so that everything above them is the same whatever is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shortlist.pipeline.candidates import ROUND, Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import ByScore
from shortlist.pipeline.stages import Decision
from shortlist.slate.constraints import Capped, Fair
from shortlist.slate.draft import Constraint, Draft, Indexes, MostRelevant, Objective, scaled
from shortlist.slate.exploration import draw, parts_of, pool_of
from shortlist.slate.specs import Explore
from shortlist.slate.targets import ADDED, Chosen, proposed
from shortlist.slate.values import Mask


def most_relevant(draft: Draft) -> Objective:  # noqa: ARG001
    """The objective where no rule asks for diversity."""
    return MostRelevant()


@dataclass
class Rules:
    """The rules of a slate by their names, ready to use; `unused` says why some that are declared are not."""

    boosts: dict[str, tuple[Chosen, float]] = field(default_factory=dict)
    pins: dict[str, tuple[Chosen, int]] = field(default_factory=dict)
    constraints: dict[str, Callable[[Draft], Constraint]] = field(default_factory=dict)
    objective: tuple[str, Callable[[Draft], Objective]] = ("", most_relevant)
    explore: Explore | None = None
    unused: dict[str, str] = field(default_factory=dict)


class Arranged:
    """The selector."""

    name = "slate"

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def arrange(self, query: Query, candidates: Candidates) -> Indexes:
        """Every candidate: the slate, then the rest by relevance."""
        return self.decide(query, candidates).order

    def decide(self, query: Query, candidates: Candidates) -> Decision:
        """The same with the propensity of each place of the slate and, for an explanation, what each rule did."""
        account: dict[str, Any] = {name: {"unused": why} for name, why in self.rules.unused.items()}
        order, draft = self._drafted(query, candidates, account)
        self._pin(draft, account)
        if self.rules.explore is not None and query.items is None:
            draft.drawn = min(self.rules.explore.slots, sum(place > 0 for place in draft.open()))
        filling = Filling(draft, self.rules)
        for place in draft.open():
            filling.fill(place)
        propensities = self._explore(draft, filling, account)
        if query.explain:
            account |= filling.account()
        chosen = order[np.concatenate([draft.slate, np.flatnonzero(draft.free)])]
        return Decision(chosen, propensities, account)

    def _drafted(self, query: Query, candidates: Candidates, account: dict[str, Any]) -> tuple[Indexes, Draft]:
        """The candidates by relevance, and a slate with nothing on it."""
        score, rounds = candidates.columns["score"], rounds_of(candidates)
        rated = np.isfinite(score)
        relevance = relevance_of(score, rated, rounds, proposed(candidates))
        for name, (chosen, factor) in self.rules.boosts.items():
            meant = chosen.among(query, candidates)
            relevance[meant] *= factor
            account[name] = {"boosted": int(meant.sum())}
        order = ByScore().arrange(query, candidates)
        if self.rules.boosts:  # what is boosted alike stays by score
            order = order[np.lexsort((-relevance[order], ~rated[order], rounds[order]))]
        relevance -= rounds * (1.0 + relevance.max(initial=0.0))  # what an earlier round found is more relevant
        needed = (ADDED, None if self.rules.explore is None else f"{self.rules.explore.among}_rank")
        columns = {name: column[order] for name, column in candidates.columns.items() if name in needed}
        own = None if candidates.own is None else candidates.own[order]
        ranked = Candidates(candidates.items[order], columns, own=own)
        return order, Draft(query, ranked, relevance[order], rated[order])

    def _pin(self, draft: Draft, account: dict[str, Any]) -> None:
        for name, (chosen, at) in self.rules.pins.items():
            found = [one for one in chosen.in_order(draft.query, draft.candidates) if draft.free[one]]
            taken = []
            for place, candidate in enumerate(found if chosen.ids else found[:1], start=at - 1):
                open_ = np.flatnonzero(draft.slate < 0).tolist()
                if place < draft.query.k and open_:
                    taken.append(min((one for one in open_ if one >= place), default=open_[-1]))
                    draft.put(candidate, taken[-1])
            account[name] = {"places": [place + 1 for place in taken]}

    def _explore(self, draft: Draft, filling: Filling, account: dict[str, Any]) -> Column:
        """Draw for the places that are kept; those that the pool does not suffice for are filled like the others."""
        propensities, spec = np.ones(len(draft.slate)), self.rules.explore
        if spec is None:
            return propensities
        caps = [constraint for constraint in filling.constraints.values() if isinstance(constraint, Capped)]
        pool, parts = np.empty(0, np.intp), []
        while draft.drawn:
            pool = pool_of(spec, draft, caps)
            parts = parts_of(pool, draft.drawn, caps)
            if len(parts) == draft.drawn:
                break
            draft.drawn, parts = draft.drawn - 1, []
            filling.fill(draft.open()[0])
        places = np.flatnonzero(draft.slate < 0).tolist()
        for slot, (place, part) in enumerate(zip(places, parts, strict=True)):
            candidate, propensities[place] = draw(spec, draft, part, slot)
            draft.put(candidate, place)
        account["explore"] = {"places": [place + 1 for place in places], "among": len(pool)}
        return propensities


class Filling:
    """Fills the places of one slate, and counts what the rules did to it where it is to be explained."""

    def __init__(self, draft: Draft, rules: Rules) -> None:
        self.draft, self.explain = draft, draft.query.explain
        self.constraints = {name: constraint(draft) for name, constraint in rules.constraints.items()}
        self.aim, objective = rules.objective
        self.objective = objective(draft)
        self.moved, self.waived = Counter[str](), Counter[str]()
        for place in np.flatnonzero(draft.slate >= 0).tolist():
            self._tell(int(draft.slate[place]), place)

    def fill(self, place: int) -> None:
        """Give an open place to the best that is allowed there."""
        allowed: Mask = self.draft.free
        for name, constraint in self.constraints.items():
            narrowed = allowed & constraint.allows(place)
            if not narrowed.any():
                self.waived[name] += 1
                continue
            self.moved[name] += bool(self.explain and not narrowed[self.objective.best(allowed)])
            allowed = narrowed
        best = self.objective.best(allowed)
        self.moved[self.aim] += best != int(allowed.argmax())
        self.draft.put(best, place)
        self._tell(best, place)

    def account(self) -> dict[str, Any]:
        """Of each rule: how many places it gave to another candidate, how many it could not hold for."""
        told: dict[str, Any] = {}
        if self.aim:
            told[self.aim] = {"moved": self.moved[self.aim]}
        for name, constraint in self.constraints.items():
            told[name] = {"moved": self.moved[name], "waived": self.waived[name]}
            if isinstance(constraint, Fair):
                told[name]["short"] = constraint.short()
        return told

    def _tell(self, candidate: int, place: int) -> None:
        for constraint in self.constraints.values():
            constraint.placed(candidate, place)
        self.objective.placed(candidate, place)


def rounds_of(candidates: Candidates) -> Column:
    """The round in which each candidate was found; 0 is the first."""
    rounds = candidates.columns.get(ROUND)
    return np.zeros(len(candidates)) if rounds is None else np.nan_to_num(rounds)


def relevance_of(score: Column, rated: Mask, rounds: Column, proposed: Mask) -> Column:
    """Finite scores of each round on a scale from 0 to 1; 1 where all are the same, 0 for what has none.

    The ends are those of what was `proposed`: what is there because a pin names it may stand far below or above that,
    and would change what relevance means for all others.
    """
    relevance = np.zeros(len(score))
    for number in np.unique(rounds) if rounds.any() else (0.0,):
        held = rated & (rounds == number)
        if held.any():
            half = score[held] / 2  # the difference of two finite numbers need not be finite; that of halves is
            relevance[held] = scaled(half, proposed[held])
    return relevance
