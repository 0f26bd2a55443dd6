"""By which path an answer comes: from what is popular, where nothing is known, to what this user did.

A system begins without data, and so does each user in it. Nothing is switched over: every request takes what is known
at that moment, and its answer says what that was.

    popular    the same for everybody: nothing is trained yet, or nothing is known of who asks
    content    models, by the user's attributes and the request's context
    history    models, by what the user did: from the first event on
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.definitions import Aggregate
from shortlist.features.entities import EVERYTHING_KNOWN
from shortlist.pipeline.query import EVENTS, PATH, Query
from shortlist.project import Project
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.specs import Fresh, Popular
from shortlist.training.releases import Manifest, Release

POPULAR, CONTENT, HISTORY = "popular", "content", "history"
UNTRAINED = "untrained"
"""The name of the release that needs no training, which serves until there is another."""


class Acquaintance:
    """The query hydrator that learns how well the user is known, before anything is asked about them.

    `personal` says whether anything in the release looks at the user at all. Events are counted by the features that
    keep them: whole counts by the user, and lists of the user's last items.
    """

    name = "acquaintance"

    def __init__(self, project: Project, asker: Asker, personal: bool) -> None:
        self.asker, self.personal = asker, personal
        self.counts = [
            feature.name
            for feature in asker.table.features.features
            if isinstance(feature, Aggregate)
            and feature.by == (asker.user,)
            and feature.operation in ("count", "last_n")
            and feature.over is None
            and feature.stream.event.kind != project.impression.kind
        ]
        asker.needs(self.counts)

    def learn(self, query: Query) -> Mapping[str, Any]:
        """The path, and at least how many of the user's events are known."""
        events = 0 if query.user is None else self._events(query)
        if not self.personal:
            return {PATH: POPULAR, EVENTS: events}
        if events:
            return {PATH: HISTORY, EVENTS: events}
        told = bool(query.context) or (query.user is not None and self._described(query))
        return {PATH: CONTENT if told else POPULAR, EVENTS: 0}

    def _events(self, query: Query) -> int:
        if not self.counts:
            return 0
        read = self.asker.columns(query)
        return max(kept(read[name][0]) for name in self.counts)

    def _described(self, query: Query) -> bool:
        known = self.asker.entities
        row, now = known.rows(self.asker.hash(query)), np.full(1, EVERYTHING_KNOWN)
        told = (attribute for name, attribute in known.attributes.items() if name != "available")
        return any(bool(attribute.versions(row, now).any()) for attribute in told)


def kept(value: NDArray[Any] | np.float64) -> int:
    """How many events a count says, or a list holds: hashes or numbers, 0 or NaN where there is none."""
    if np.ndim(value) == 0:
        return int(np.nan_to_num(value))
    return int(np.count_nonzero(np.nan_to_num(value)))


def personal(project: Project, manifest: Manifest) -> bool:
    """Whether a release has anything that looks at who asks."""
    declared = {spec.name: spec for spec in project.sources}
    return bool(manifest.ranker) or any(
        not isinstance(declared.get(name, Popular()), Popular | Fresh) for name in manifest.sources
    )


def untrained(project: Project, fingerprint: str) -> Release:
    """What serves before anything was learned: the sources that need no training, in their own order."""
    names = [spec.name for spec in project.sources if isinstance(spec, Popular | Fresh)]
    manifest = Manifest(
        project=project.name,
        seed=0,
        log_position=0,
        fingerprint=fingerprint,
        ranker="",
        rankers=(),
        sources=tuple(names or [Popular().name]),
        columns=(),
        metrics={},
    )
    return Release(Path(UNTRAINED), manifest, {})
