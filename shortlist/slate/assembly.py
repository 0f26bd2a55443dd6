"""A project's slate rules over a live table. A new kind of rule is a spec, a class and a registration here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, singledispatch

from shortlist.features.entities import Entities
from shortlist.pipeline.runner import ByScore
from shortlist.pipeline.stages import Filter, Merger, Selector, Source
from shortlist.slate.constraints import Capped, Fair
from shortlist.slate.diversity import Determinantal, Embedding, LikenessOf, MarginalRelevance, Nearness, Overlap
from shortlist.slate.selector import Arranged, Rules
from shortlist.slate.specs import DPP, MMR, Boost, Cap, Exclude, Explore, Fairness, Pin, RuleSpec, Seen, names_of
from shortlist.slate.targets import Chosen, Pinned, RuledOut, WithPinned
from shortlist.slate.values import words_for

FILTERS = (Exclude, Seen)
"""Rules that say what may be shown at all: they are filters of retrieval."""

logger = logging.getLogger(__name__)


@dataclass
class Ground:
    """What rules stand on, the items and the sources that have vectors of them; and the rules that stand there."""

    entities: Entities
    embeddings: Mapping[str, Embedding]
    rules: Rules = field(default_factory=Rules)

    def likeness(self, by: str) -> LikenessOf | None:
        """Similarity by a source's vectors or an attribute; None where this release has no such source."""
        if by in self.embeddings:
            return partial(Nearness, self.embeddings[by])
        return partial(Overlap, self.entities, by) if by in self.entities.attributes else None


@dataclass(frozen=True)
class SlateStages:
    """What the rules add to a pipeline beside filters: the selector, and the source of what is pinned by name."""

    selector: Selector
    sources: tuple[Source, ...] = ()

    def merging(self, merger: Merger) -> Merger:
        """The merger, with room for what is pinned."""
        return WithPinned(merger) if self.sources else merger


def exclusions(rules: Sequence[RuleSpec], entities: Entities) -> tuple[Filter, ...]:
    """The filters that drop what rules exclude."""
    named = zip(names_of(rules), rules, strict=True)
    return tuple(RuledOut(name, Chosen(rule, entities)) for name, rule in named if isinstance(rule, Exclude))


def load_slate(rules: Sequence[RuleSpec], entities: Entities, embeddings: Mapping[str, Embedding]) -> SlateStages:
    """The stages of all rules but those that are filters; without any, the selector that sorts by score."""
    ground = Ground(entities, embeddings)
    named = [(name, rule) for name, rule in zip(names_of(rules), rules, strict=True) if not isinstance(rule, FILTERS)]
    for name, rule in named:
        add(rule, name, ground)
    for name, why in ground.rules.unused.items():
        logger.warning("the slate rule %s is not used: %s", name, why)
    pins = [chosen for chosen, _ in ground.rules.pins.values() if chosen.ids]
    return SlateStages(Arranged(ground.rules) if named else ByScore(), (Pinned(pins),) if pins else ())


@singledispatch
def add(rule: object, name: str, ground: Ground) -> None:
    """Let a rule stand on its ground under its name."""
    raise TypeError(f"no slate rule is known for {name}: {rule!r}, of items {ground.entities.entity.name!r}")


@add.register
def _(rule: Boost, name: str, ground: Ground) -> None:
    ground.rules.boosts[name] = Chosen(rule, ground.entities), rule.factor


@add.register
def _(rule: Pin, name: str, ground: Ground) -> None:
    ground.rules.pins[name] = Chosen(rule, ground.entities), rule.at


@add.register
def _(rule: Cap, name: str, ground: Ground) -> None:
    ground.rules.constraints[name] = partial(
        Capped, entities=ground.entities, attribute=rule.attribute, at_most=rule.at_most
    )


@add.register
def _(rule: Fairness, name: str, ground: Ground) -> None:
    words = words_for(ground.entities, rule.attribute, list(rule.at_least))
    ground.rules.constraints[name] = partial(
        Fair, entities=ground.entities, attribute=rule.attribute, words=words, shares=rule.at_least
    )


@add.register
def _(rule: MMR | DPP, name: str, ground: Ground) -> None:
    likeness, kind = ground.likeness(rule.by), MarginalRelevance if isinstance(rule, MMR) else Determinantal
    if likeness is None:
        ground.rules.unused[name] = f"this release has no item vectors of {rule.by!r}"
    else:
        ground.rules.objective = (
            name,
            partial(kind, likeness=likeness, trade_off=rule.trade_off, among=rule.among),
        )


@add.register
def _(rule: Explore, name: str, ground: Ground) -> None:  # noqa: ARG001 - there is one at most
    ground.rules.explore = rule
