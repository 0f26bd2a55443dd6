"""Which sources to retrieve with, as the project file declares them, and the features that retrieval itself needs.

Retrieval keeps no state of its own: what a user has seen and what is popular are features like all others, so that
they are known as of the same log position, in training and in serving, and are recovered with everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.schema import Entity, EventSchema
from shortlist.features.definitions import Aggregate, Condition, Feature, Stream

MOST_CANDIDATES = 500
"""Of all sources together: what is merged, described and ranked for one request."""


@dataclass(frozen=True)
class Popular:
    """The items that were acted on most, lately: every positive action counts its gain, halved every `half_life`.

    At most `quota` items are proposed.
    """

    half_life: str = "365d"
    quota: int = 200
    name: str = "popular"


@dataclass(frozen=True)
class Fresh:
    """The newest items of the catalogue, the same for everybody: an item is proposed from its first event on.

    Models know nothing of what is new; beside this source, `Explore(1, among="fresh")` in the slate sees to it that new
    items are shown, and what follows is learned from.
    """

    quota: int = 50
    name: str = "fresh"


@dataclass(frozen=True)
class TwoTower:
    """A two-tower model (Yi et al., RecSys 2019): a user vector, item vectors, and an index of the nearest items.

    `history` is a feature that lists the user's last items (`watch.by(user).last("film", 50)`); the attributes are
    those of the user and of the item that the towers look at, `item_text` those of the item whose words they look at,
    `context` the values of the request that the user tower looks at; all but the history may be left out. The
    last items are a weighted mean; as a `sequence` they are read in their order, too (what was newest asks what of the
    rest matters now), which takes twice the time to learn.
    `text_encoder` is a folder that holds a sentence encoder as sentence-transformers publishes it (BERT, such as
    all-MiniLM-L6-v2), beside the project file where it is relative: the texts are then read as sentences, not as bags
    of words.

    Vectors have `dimensions` numbers and length 1; `temperature` divides their products in the softmax. Training passes
    over the positives at most `epochs` times, and stops when recall on the newest has stopped rising.
    """

    history: Aggregate
    user_attributes: Sequence[str] = ()
    item_attributes: Sequence[str] = ()
    item_text: Sequence[str] = ()
    text_encoder: str | None = None
    context: Sequence[str] = ()
    sequence: bool = False
    dimensions: int = 256
    quota: int = 500
    epochs: int = 5
    batch: int = 1024
    learning_rate: float = 0.006
    temperature: float = 0.2
    name: str = "two_tower"

    def beside(self, folder: Path) -> TwoTower:
        """The same for whoever works somewhere else: a relative path of the text encoder begins at `folder`."""
        return self if self.text_encoder is None else replace(self, text_encoder=str(folder / self.text_encoder))


@dataclass(frozen=True)
class CoVisitation:
    """Items that the same users acted on, where users of many items count less.

    Item j is as near to item i as sum over their users of 1 / items of the user, by |i|^1/2 |j|^popularity: at 1/2 the
    cosine, below it more of what is popular. `popularity` is chosen on held-out actions where it is not given (as in
    RP3-beta: Paudel et al., Updatable, accurate, diverse, and scalable recommendations, TiiS 2017). `history` is a
    feature that lists the user's items (`watch.by(user).last("film", 500)`), `neighbours` how many others each item
    speaks for.
    """

    history: Aggregate
    neighbours: int = 200
    quota: int = 200
    name: str = "covisitation"
    popularity: float | None = None


@dataclass(frozen=True)
class LinearAutoencoder:
    """Each item as a sum of others, by ridge regression on the `neighbours` that go with it most often.

    EASE (Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019) where these are all others; where they
    are some, SLIM with feature selection (Ning and Karypis, ICDM 2011), as good in small catalogues and possible in
    large ones. `history` is a feature that lists the user's items; `ridge` is chosen on held-out actions where it is
    not given; the `most_items` most frequent items take part.
    """

    history: Aggregate
    ridge: float | None = None
    most_items: int = 100_000
    neighbours: int = 200
    quota: int = 200
    name: str = "autoencoder"


@dataclass(frozen=True)
class GraphFilter:
    """Users and items as a graph, and its smooth signals: no training but linear algebra.

    Normalised co-occurrence and an ideal low pass of `rank` directions (Shen et al., How powerful is graph convolution
    for recommendation?, CIKM 2021), sharpened by the heat equation run backwards (Choi et al., Blurring-sharpening
    process models, SIGIR 2023). How far prolific users are held back, how much of the low pass and how sharp is chosen
    on held-out actions. `history` is a feature that lists the user's items; the `most_items` most frequent ones take
    part, each with the `neighbours` greatest of its weights.
    """

    history: Aggregate
    rank: int = 256
    most_items: int = 50_000
    neighbours: int = 512
    quota: int = 500
    name: str = "graph_filter"


@dataclass(frozen=True)
class MatrixFactorisation:
    """Items as vectors, a user as the sum of the history's, and an index of the items nearest to it.

    The singular value decomposition (PureSVD; Cremonesi, Koren, Turrin, RecSys 2010) of the matrix of users and items,
    normalised on both sides, so that neither prolific users nor popular items rule it. How far prolific users are held
    back, how many of the `dimensions` are kept and how much the first of them count is chosen on held-out actions; of a
    large catalogue only as many are kept as 400 MB hold, or 256. `history` is a feature that lists the user's items.
    """

    history: Aggregate
    dimensions: int = 1_024
    quota: int = 500
    name: str = "matrix_factorisation"


@dataclass(frozen=True)
class FactorizationMachine:
    """What users want, learned from what they were shown: the log-odds that they act on what they look at.

    A factorisation machine (Rendle, ICDM 2010) over ids and attributes of users and items, in its Bayesian form, which
    has nothing to tune: how far each may stray from what its attributes say is learned with the rest. It needs labels
    with impressions. Actions that the objective weighs below zero reject what was looked at. `amounts` names a field of
    an action that says how much of it there was (`{watch: "seconds"}`), which tells more than that it happened. Of
    vectors of `dimensions` numbers many samples are drawn; what is served is their mean, as longer vectors with an
    index of the items. Newcomers and new items stand where their attributes put them.
    """

    user_attributes: Sequence[str] = ()
    item_attributes: Sequence[str] = ()
    amounts: Mapping[EventSchema, str] = field(default_factory=dict)
    dimensions: int = 12
    quota: int = 500
    name: str = "factorization_machine"


HistorySpec = CoVisitation | LinearAutoencoder | GraphFilter
"""Sources that weigh items by the items of the user's history."""
SourceSpec = Popular | Fresh | TwoTower | MatrixFactorisation | FactorizationMachine | HistorySpec


def positive_streams(labels: Labels | ObservedPositives) -> tuple[tuple[Stream, float], ...]:
    """The streams of events that count as positive, each with its gain. A condition holds for kinds with its field."""
    streams = []
    for event, gain in labels.gains.items():
        conditions: tuple[Condition, ...] = ()
        if isinstance(labels, ObservedPositives) and labels.where is not None and labels.where[0] in event.fields:
            name, comparison, value = labels.where
            conditions = (Condition(name, comparison, value),)  # type: ignore[arg-type]  # validated with the project
        streams.append((Stream(event, conditions), float(gain)))
    return tuple(streams)


def popularity_features(
    labels: Labels | ObservedPositives, item: Entity, half_life: str
) -> tuple[tuple[Aggregate, float], ...]:
    """The decayed count of each positive stream by item, with its gain: popularity is their weighted sum."""
    return tuple(
        (stream.by(item).decayed_count(half_life).named(f"popularity_{stream.event.kind}_{half_life}"), gain)
        for stream, gain in positive_streams(labels)
    )


def seen_features(
    seen: Mapping[EventSchema, int | None], user: Entity, item: Entity
) -> tuple[tuple[Aggregate, int | None], ...]:
    """What tells whether this user has seen this item, per kind of action, whatever its fields, and for how long (ms).

    Where it is for good (None), how often: seen is more than never. Else how long ago, which is exact to the
    millisecond where a count with a window is to its hop, and takes a tenth of its memory. Both hold for every user,
    however much they have seen.
    """
    pairs = [(Stream(event).by(user, item), event.kind, limit) for event, limit in seen.items()]
    return tuple(
        (pair.count().named(f"seen_{kind}") if limit is None else pair.time_since().named(f"seen_{kind}_ago"), limit)
        for pair, kind, limit in pairs
    )


def retrieval_features(
    sources: Sequence[SourceSpec],
    labels: Labels | ObservedPositives,
    seen: Mapping[EventSchema, int | None],
    user: Entity,
    item: Entity,
    declared: Sequence[Feature] = (),
) -> tuple[Aggregate, ...]:
    """Every feature that retrieval needs beside those declared; compile them into the project's feature set.

    `seen` are the kinds of events after which an item is not shown again, and for how long (`seen_features`).
    Popularity is always among them: it is the last resort.
    """
    half_lives = dict.fromkeys(s.half_life for s in (*sources, Popular()) if isinstance(s, Popular))
    popular = [f for half_life in half_lives for f, _ in popularity_features(labels, item, half_life)]
    without = (Popular, Fresh, FactorizationMachine)
    histories = [source.history for source in sources if not isinstance(source, without)]
    filtering = [feature for feature, _ in seen_features(seen, user, item)]
    wanted = {feature.name: feature for feature in (*filtering, *popular, *histories)}
    taken = {feature.name for feature in declared}
    return tuple(feature for name, feature in wanted.items() if name not in taken)
