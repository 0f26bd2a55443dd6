"""A release's sources over a live table: what training measures is what serving asks.

A new kind of source is one class in `retrieval`, one registration here and one in `training.sources.fitting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path

from shortlist.features.table import FeatureTable
from shortlist.giving_way import Behind
from shortlist.pipeline.stages import Describing, Filter, Merger, QueryHydrator, Source
from shortlist.project import Project
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import Available, Excluded, NotSeen, Where
from shortlist.retrieval.fresh import FreshSource
from shortlist.retrieval.merge import Interleaved
from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.models.item_tower import ItemTower
from shortlist.retrieval.models.item_weights import HistorySource, ItemWeights
from shortlist.retrieval.models.machine import Machine
from shortlist.retrieval.models.towers import Towers
from shortlist.retrieval.popular import LastResort, PopularSource
from shortlist.retrieval.popularity import Popularity
from shortlist.retrieval.specs import (
    FactorizationMachine,
    Fresh,
    HistorySpec,
    MatrixFactorisation,
    Popular,
    SourceSpec,
    TwoTower,
    popularity_features,
    seen_features,
)
from shortlist.retrieval.vectors.live_items import Describer
from shortlist.retrieval.vectors.nearest import TowerSource, VectorModel
from shortlist.slate.assembly import exclusions


@dataclass(frozen=True)
class SourceStages:
    """What one source adds to a pipeline: itself, what it learns of the query, what it says of candidates."""

    source: Source
    understand: tuple[QueryHydrator, ...] = ()
    hydrators: tuple[Describing, ...] = ()


@dataclass(frozen=True)
class Retrieval:
    """The stages of a pipeline up to its scorer.

    `asker` reads what other stages need of the user, too, if they tell it when they are made. `popular` proposes what
    is popular whether or not it is one of the sources.
    """

    asker: Asker
    understand: tuple[QueryHydrator, ...]
    sources: tuple[Source, ...]
    merger: Merger
    filters: tuple[Filter, ...]
    hydrators: tuple[Describing, ...]
    popular: Source
    last_resort: LastResort


@dataclass(frozen=True)
class Place:
    """Where a source finds its things: project, live table, who asks, filters, its directory of the release.

    `behind` lets popularity be read anew beside the requests, which is right for a service; `refresh_ms` is how old
    it may be. `popularities` are those that sources have asked for, by half-life. `since` is the log position that the
    models were fitted at; None where the table has not come as far, as in training.
    """

    project: Project
    table: FeatureTable
    catalogue: Catalogue
    asker: Asker
    filters: tuple[Filter, ...]
    directory: Path
    behind: Behind | None = None
    refresh_ms: int = 5_000
    popularities: dict[str, Popularity] = field(default_factory=dict)
    since: int | None = None


@singledispatch
def load_source(spec: object, place: Place) -> SourceStages:
    """The stages of the source that `spec` declares, over a live table. Raises ValueError for a damaged artifact."""
    raise TypeError(f"no source is known for {spec!r} of {place.project.name}")


@load_source.register
def _(spec: Popular, place: Place) -> SourceStages:
    return SourceStages(PopularSource(spec.name, popularity(place, spec.half_life), spec.quota, place.filters))


@load_source.register
def _(spec: Fresh, place: Place) -> SourceStages:
    return SourceStages(FreshSource(spec.name, place.catalogue, spec.quota, place.filters))


@load_source.register
def _(spec: TwoTower, place: Place) -> SourceStages:
    directory = place.directory / spec.name
    towers = Towers.load(directory)
    return nearest(spec, towers, place, ItemTower.load(directory, towers))


@load_source.register
def _(spec: MatrixFactorisation, place: Place) -> SourceStages:
    return nearest(spec, Factors.load(place.directory / spec.name), place)


@load_source.register
def _(spec: FactorizationMachine, place: Place) -> SourceStages:
    machine = Machine.load(place.directory / spec.name)
    return nearest(spec, machine, place, machine)


@load_source.register
def _(spec: HistorySpec, place: Place) -> SourceStages:
    weights, history = ItemWeights.load(place.directory / spec.name), spec.history.name
    source = HistorySource(spec.name, weights, place.catalogue, place.asker, history, spec.quota, place.filters)
    return SourceStages(source, (source,), (source,))


def nearest(spec: SourceSpec, model: VectorModel, place: Place, describer: Describer | None = None) -> SourceStages:
    """The stages of a source whose model makes vectors, of items too where there is a `describer`."""
    source = TowerSource(
        spec.name, model, place.catalogue, place.asker, spec.quota, place.filters, describer, place.behind, place.since
    )
    return SourceStages(source, (source,), (source,))


def popularity(place: Place, half_life: str) -> Popularity:
    """The popularity of every item by a half-life, counted once for all that ask."""
    known = place.popularities.get(half_life)
    if known is None:
        project = place.project
        streams = popularity_features(project.labels, project.item, half_life)
        names, gains = [feature.name for feature, _ in streams], [gain for _, gain in streams]
        known = Popularity(place.catalogue, names, gains, half_life, place.refresh_ms, place.behind)
        place.popularities[half_life] = known
    return known


def load_retrieval(
    project: Project,
    directory: Path,
    names: Sequence[str],
    table: FeatureTable,
    behind: Behind | None = None,
    refresh_ms: int = 5_000,
    since: int | None = None,
) -> Retrieval:
    """The retrieval of the release in `directory`, whose sources are those of the project called `names`.

    What the table says of items from log position `since` on is news to the release; None where nothing is as yet.

    Raises KeyError where the project declares no such source, ValueError where an artifact is damaged.
    """
    declared = {spec.name: spec for spec in project.sources}
    missing = [name for name in names if name not in declared and name != Popular().name]
    if missing:
        raise KeyError(f"the release has the sources {missing}, which project {project.name!r} does not declare")
    catalogue, asker = Catalogue(table, project.item.name), Asker(table, project.user.name)
    seen = {feature.name: limit for feature, limit in seen_features(project.seen, project.user, project.item)}
    where = Where(catalogue)
    filters: tuple[Filter, ...] = (
        Available(catalogue),
        Excluded(catalogue),
        where,
        NotSeen(catalogue, project.user.name, seen),
        *exclusions(project.slate, catalogue.entities),
    )
    place = Place(project, table, catalogue, asker, filters, directory / "sources", behind, refresh_ms, since=since)
    specs = [declared.get(name, Popular()) for name in names]
    loaded = [load_source(spec, place) for spec in specs]
    return Retrieval(
        asker,
        (where, *(stage for stages in loaded for stage in stages.understand)),
        tuple(stages.source for stages in loaded),
        Interleaved({spec.name: spec.quota for spec in specs}),
        filters,
        tuple(stage for stages in loaded for stage in stages.hydrators),
        load_source(Popular(), place).source,
        LastResort(popularity(place, Popular().half_life), catalogue),
    )
