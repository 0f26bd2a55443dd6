"""The pipelines of a release: what answers `/recommend` and `/rank`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.stages import Observer
from shortlist.pipeline.trace import Trace
from shortlist.project import Project
from shortlist.ranking.scoring import RankerStage, load_scorer
from shortlist.serving.hydration import LiveCatalogue, LiveFeatures
from shortlist.serving.impressions import UNLOGGED
from shortlist.training.releases import Release

WARM_USERS = 20
WARM_ITEMS = 100
WARM_MS = 60_000.0


@dataclass(frozen=True)
class Champion:
    """The release that is served: a pipeline for each way to ask, and its report for people."""

    version: str
    recommend: Pipeline
    rank: Pipeline
    report: Mapping[str, Any]

    def warm(self, users: Sequence[str], items: Sequence[str], now: int, request_id: Callable[[], str]) -> None:
        """Answer a few requests that nobody asked, so that the first user finds caches and kernels warm."""
        for _ in range(2):
            for pipeline in (self.recommend, self.rank):
                pipeline.pace.forget()
                pipeline.paces.forget()  # the first round compiled and loaded; it says nothing about the next one
            for user in (None, *users[:WARM_USERS]):
                for pipeline, own in ((self.recommend, None), (self.rank, tuple(items[:WARM_ITEMS]))):
                    deadline = Deadline.after(WARM_MS)
                    query = Query(user, 10, now, request_id(), deadline, items=own, known={UNLOGGED: True})
                    pipeline.rank(query)


def load_champion(
    project: Project, release: Release, table: FeatureTable, observer: Observer, watch: Callable[[Trace], None]
) -> Champion:
    """The pipelines of a release over the live table. Raises ReleaseError, or what the loaders raise, when damaged."""
    item = project.item.name
    catalogue = LiveCatalogue(table.entities[item])
    features = LiveFeatures(table, catalogue, project.user.name, item)
    ranker = release.manifest.ranker
    scorer = RankerStage(ranker, load_scorer(release.path(f"rankers/{ranker}"))) if ranker else None
    rank = Pipeline(catalogue, scorer, hydrators=[features], observers=[observer], release=release.version, watch=watch)
    return Champion(release.version, rank, rank, {})
