"""The pipelines of a release: what answers `/recommend` and `/rank`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shortlist.features.table import FeatureTable
from shortlist.giving_way import Behind
from shortlist.pipeline.pace import Pace
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.stages import Filter, Observer
from shortlist.pipeline.trace import Paces, Trace
from shortlist.project import Project
from shortlist.ranking.scoring import RankerStage, load_scorer
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import Available, Excluded
from shortlist.serving.hydration import LiveFeatures
from shortlist.serving.impressions import UNLOGGED
from shortlist.serving.paths import Acquaintance, personal
from shortlist.slate.assembly import exclusions, load_slate
from shortlist.slate.diversity import Embedding
from shortlist.training.assembly import load_retrieval
from shortlist.training.releases import Release

WARM_USERS = 20
WARM_ITEMS = 100
WARM_MS = 60_000.0


@dataclass(frozen=True)
class Champion:
    """The release that is served: a pipeline for each way to ask, and its report for people.

    `behind` are the threads that keep its sources up to the events.
    """

    version: str
    recommend: Pipeline
    rank: Pipeline
    report: Mapping[str, Any]
    behind: Behind

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
        if self.recommend.last_resort is not None:
            next(self.recommend.last_resort.portions(query), None)


def load_champion(
    project: Project, release: Release, table: FeatureTable, observer: Observer, watch: Callable[[Trace], None]
) -> Champion:
    """The pipelines of a release over the live table. Raises ReleaseError, or what the loaders raise, when damaged.

    The project's slate rules shape both; the caller's own items are never drawn (`slate.specs.Explore`), and may have
    been seen. Evaluation holds to exclusions, to what counts as seen, and to nothing else of the slate: it measures
    what rankers know, and a pin or a draw would hide it.
    """
    manifest = release.manifest
    behind = Behind()
    retrieval = load_retrieval(project, release.directory, manifest.sources, table, behind, since=manifest.log_position)
    scorer = load_ranker(release)
    catalogue = Catalogue(table, project.item.name)
    vectors = {source.name: source for source in retrieval.sources if isinstance(source, Embedding)}
    slate = load_slate(project.slate, catalogue.entities, vectors)
    features = LiveFeatures(catalogue, project.user.name, scorer.scorer.names if scorer else ())
    recommend = Pipeline(
        catalogue=table.entities[project.item.name],
        scorer=scorer,
        understand=[Acquaintance(project, retrieval.asker, personal(project, manifest)), *retrieval.understand],
        sources=[*retrieval.sources, *slate.sources],
        merger=slate.merging(retrieval.merger),
        filters=retrieval.filters,
        hydrators=[*retrieval.hydrators, features],
        selector=slate.selector,
        observers=[observer],
        defaults={stage.name: dict.fromkeys(stage.columns, math.nan) for stage in retrieval.hydrators},
        last_resort=retrieval.last_resort,
        release=release.version,
        versions={"release": release.version, "features": manifest.fingerprint[:12], "ranker": manifest.ranker},
        watch=watch,
    )
    own: list[Filter] = [Available(catalogue), Excluded(catalogue), *exclusions(project.slate, catalogue.entities)]
    rank = replace(recommend, sources=(), merger=None, filters=own, last_resort=None, paces=Paces(), pace=Pace())
    return Champion(release.version, recommend, rank, report(release), behind)


def load_ranker(release: Release) -> RankerStage | None:
    """The ranker that orders the slates; None where the sources' own order stands."""
    name = release.manifest.ranker
    return RankerStage(name, load_scorer(release.path(f"rankers/{name}"))) if name in release.manifest.rankers else None


def report(release: Release) -> dict[str, Any]:
    """What the home page says of a release."""
    manifest = asdict(release.manifest)
    names = ("project", "seed", "log_position", "ranker", "rankers", "sources", "metrics")
    return {"version": release.version, "created": dict(release.created), **{name: manifest[name] for name in names}}
