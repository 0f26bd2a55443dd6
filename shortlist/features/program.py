"""Definitions as a program: which rows of state there are, what they hold, and how columns are read off them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.schema import Entity, FieldType
from shortlist.features import descriptors as k
from shortlist.features.definitions import Aggregate, Feature, Ratio, RequestFeature, Stream, duration_ms
from shortlist.features.problems import problems
from shortlist.features.used_code import used_code
from shortlist.features.windows import MAX_FUTURE_MS, Window, attribute_types, entity_of, type_of, window_of
from shortlist.framing.problems import ProjectError, nearest

LAW = 1
"""The version of the meaning of state (docs/features.md): tiles, hashes, rules. It is part of every fingerprint."""

MOST_STREAMS = 62
NAN_WORD = int(np.array([np.nan]).view(np.int64)[0])

Table = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """All state that is kept per value of one key: the descriptors that `kernels.walk` interprets.

    `values[kind]` are the (field, is a number) of a record's value columns for events of that kind.
    """

    keys: tuple[str, ...]
    streams: tuple[Stream, ...]
    values: Mapping[str, tuple[tuple[str, bool], ...]]
    tilesets: Table
    lanes: Table
    template: NDArray[np.int64]
    mask_at: int
    width: int

    @property
    def expands(self) -> bool:
        """Whether a part of the key is an attribute, so that one event may belong to several rows, or none."""
        return any("." in part for part in self.keys)

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities whose ids the key is made of."""
        return tuple(dict.fromkeys(entity_of(part) for part in self.keys))


@dataclass(frozen=True)
class Output:
    """How one aggregate is read: its group, and one row of output descriptors (DEST is set by a plan)."""

    group: int
    descriptor: tuple[int, ...]
    length: int = 0
    numeric: bool = True

    @property
    def tileset(self) -> int:
        """The tile set of the group that it reads."""
        return self.descriptor[k.TILESET]


@dataclass
class _TileSet:
    stream: int
    window: Window | None
    lanes: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    def lane(self, op: int, slot: int = 0, numeric: int = 1, size: int = 0, half_life: int = 0) -> tuple[int, ...]:
        wanted = (op, slot, numeric, size, half_life)
        if wanted not in self.lanes:
            self.lanes.append(wanted)
        return wanted


def lane_words(op: int, size: int) -> int:
    """The 64-bit words that a lane takes."""
    if op == k.WELFORD:
        return 3
    if op in (k.LATEST, k.EARLIEST, k.DECAYED, k.DECAYED_COUNT):
        return 2
    if op == k.RECENT:
        return 2 + 2 * size
    if op == k.FREQUENT:
        return 2 * size
    return size // 8 if op == k.REGISTERS else 1


def _empty_lane(op: int, size: int) -> NDArray[np.int64]:
    words: NDArray[np.int64] = np.zeros(lane_words(op, size), np.int64)
    if op in (k.MIN, k.MAX):
        words[:] = np.array([np.inf if op == k.MIN else -np.inf]).view(np.int64)
    elif op in (k.LATEST, k.EARLIEST, k.NEWEST, k.DECAYED, k.DECAYED_COUNT):
        words[0] = k.NEVER
    return words


def registers(error: float) -> int:
    """HyperLogLog registers, a power of two from 16 to 65,536, for a relative standard error of at most `error`."""
    return 1 << min(max(int(np.ceil(2 * np.log2(1.04 / error))), 4), 16)


class _GroupBuilder:
    """Collects the streams, tile sets and lanes of one key, then lays them out in a row."""

    def __init__(self, keys: tuple[str, ...], place: int) -> None:
        self.keys, self.place = keys, place
        self.streams: list[Stream] = []
        self.values: dict[str, list[tuple[str, bool]]] = {}
        self.tilesets: list[_TileSet] = []
        self.wanted: list[tuple[_TileSet, int, tuple[Any, ...], tuple[Any, ...], int, int, bool]] = []

    def add(self, aggregate: Aggregate) -> int:
        """Make room for an aggregate; returns its number among the group's outputs."""
        if aggregate.stream not in self.streams:
            self.streams.append(aggregate.stream)
        stream, window = self.streams.index(aggregate.stream), window_of(aggregate)
        tiles = next((t for t in self.tilesets if (t.stream, t.window) == (stream, window)), None)
        if tiles is None:
            tiles = _TileSet(stream, window)
            self.tilesets.append(tiles)
        slot, numeric = self._slot(aggregate)
        self.wanted.append((tiles, *_lanes(tiles, aggregate, slot, numeric)))
        return len(self.wanted) - 1

    def _slot(self, aggregate: Aggregate) -> tuple[int, bool]:
        if aggregate.value is None:
            return 0, True
        event = aggregate.stream.event
        names = self.values.setdefault(event.kind, [])
        value = (aggregate.value, type_of(event, aggregate.value) != "str")
        if value not in names:
            names.append(value)
        return k.VALUES + names.index(value), value[1]

    def build(self) -> tuple[Group, list[Output]]:
        """The finished group and its outputs in the order of `add`."""
        width = k.VALUES + max((len(names) for names in self.values.values()), default=0)
        mask_at = width if len(self.streams) > 1 else 0
        tilesets: list[tuple[int, ...]] = []
        lanes: list[tuple[int, ...]] = []
        parts: list[NDArray[np.int64]] = []
        base = 0
        for tiles in self.tilesets:
            tile: list[NDArray[np.int64]] = []
            first = len(lanes)
            for op, slot, numeric, size, half_life in tiles.lanes:
                lanes.append((op, slot, sum(map(len, tile)), numeric, size, half_life))
                tile.append(_empty_lane(op, size))
            window, words = tiles.window, sum(map(len, tile))
            ring = window.ring if window else 1
            header = [k.NEVER, k.NEVER, 0] if window else []
            parts.append(np.concatenate([np.array(header, np.int64), np.tile(np.concatenate(tile), ring)]))
            hop, length = (window.hop, window.tiles) if window else (0, 0)
            tilesets.append((tiles.stream, hop, length, ring, base, words, first, len(lanes)))
            base += len(parts[-1])
        group = Group(
            self.keys, tuple(self.streams), {kind: tuple(names) for kind, names in self.values.items()},
            np.array(tilesets, np.int64), np.array(lanes, np.int64), np.concatenate(parts), mask_at,
            width + (mask_at > 0),
        )  # fmt: skip
        return group, [self._output(lanes, tilesets, *wanted) for wanted in self.wanted]

    def _output(
        self,
        lanes: Sequence[tuple[int, ...]],
        tilesets: Sequence[tuple[int, ...]],
        tiles: _TileSet,
        how: int,
        first: tuple[Any, ...],
        second: tuple[Any, ...],
        size: int,
        length: int,
        numeric: bool,
    ) -> Output:
        t = self.tilesets.index(tiles)
        start = tilesets[t][k.LANES_FROM]
        places = [lanes[start + tiles.lanes.index(lane)][k.PLACE] if lane else 0 for lane in (first, second)]
        descriptor = [0] * k.OUTPUT_FIELDS
        descriptor[k.READ], descriptor[k.TILESET] = how, t
        descriptor[k.FIRST], descriptor[k.SECOND] = places[0], size or places[1]
        descriptor[k.LENGTH] = length if how in LIST_READS else first[3]
        descriptor[k.DECAY] = first[4]
        descriptor[k.EMPTY] = NAN_WORD if numeric else 0
        return Output(self.place, tuple(descriptor), length if how in LIST_READS else 0, numeric)


LIST_READS = (k.READ_WORD, k.READ_RECENT, k.READ_FREQUENT)

_Lanes = tuple[int, tuple[Any, ...], tuple[Any, ...], int, int, bool]


def _lanes(tiles: _TileSet, aggregate: Aggregate, slot: int, numeric: bool) -> _Lanes:
    """The lanes of an aggregate and how to read them: (how, first, second, entries, list length, numeric)."""
    number = int(numeric)
    single = {
        "sum": (k.SUM, k.READ_TOTAL),
        "min": (k.MIN, k.READ_MIN),
        "max": (k.MAX, k.READ_MAX),
        "std": (k.WELFORD, k.READ_STD),
    }
    operation = aggregate.operation
    if operation == "count":
        return k.READ_TOTAL, tiles.lane(k.COUNT), (), 0, 0, True
    if operation in single:
        op, how = single[operation]
        return how, tiles.lane(op, slot), (), 0, 0, True
    if operation == "mean":
        return k.READ_MEAN, tiles.lane(k.PRESENT, slot), tiles.lane(k.SUM, slot), 0, 0, True
    if operation in ("first", "last"):
        lane = tiles.lane(k.LATEST if operation == "last" else k.EARLIEST, slot, number)
        return (k.READ_NUMBER, lane, (), 0, 0, True) if numeric else (k.READ_WORD, lane, (), 0, 1, False)
    if operation == "last_n":
        return k.READ_RECENT, tiles.lane(k.RECENT, slot, number, aggregate.n), (), aggregate.n, aggregate.n, numeric
    if operation == "top_k":
        counters = max(4 * aggregate.n, 16)
        return k.READ_FREQUENT, tiles.lane(k.FREQUENT, slot, number, counters), (), counters, aggregate.n, numeric
    if operation == "time_since":
        return k.READ_SINCE, tiles.lane(k.NEWEST), (), 0, 0, True
    if operation == "distinct":
        lane = tiles.lane(k.REGISTERS, slot, number, registers(aggregate.error))
        return k.READ_DISTINCT, lane, (), 0, 0, True
    half_life = duration_ms(aggregate.half_life or "")
    op = k.DECAYED_COUNT if operation == "decayed_count" else k.DECAYED
    return k.READ_DECAYED, tiles.lane(op, slot, 1, 0, half_life), (), 0, 0, True


class Program:
    """Groups of state and the outputs of every aggregate that columns need, hidden ones of ratios included."""

    def __init__(self, aggregates: Iterable[Aggregate]) -> None:
        builders: list[_GroupBuilder] = []
        places: dict[Aggregate, tuple[int, int]] = {}
        for aggregate in aggregates:
            plain = replace(aggregate, label="")
            if plain not in places:
                builder = self._builder(builders, plain)
                places[plain] = builder.place, builder.add(plain)
        built = [builder.build() for builder in builders]
        self.groups: tuple[Group, ...] = tuple(group for group, _ in built)
        self.outputs: dict[Aggregate, Output] = {a: built[g][1][number] for a, (g, number) in places.items()}

    def output(self, aggregate: Aggregate) -> Output:
        """How an aggregate is read."""
        return self.outputs[replace(aggregate, label="")]

    @staticmethod
    def _builder(builders: list[_GroupBuilder], aggregate: Aggregate) -> _GroupBuilder:
        for builder in builders:
            room = len(builder.streams) < MOST_STREAMS or aggregate.stream in builder.streams
            if builder.keys == aggregate.by and room:
                return builder
        builders.append(_GroupBuilder(aggregate.by, len(builders)))
        return builders[-1]


def over_all_keys(aggregate: Aggregate) -> Aggregate:
    """The same aggregate over every key together."""
    return replace(aggregate, by=())


def aggregates_of(feature: Feature) -> list[Aggregate]:
    """Every aggregate that a feature is computed from."""
    if isinstance(feature, Aggregate):
        return [feature]
    if isinstance(feature, Ratio):
        parts = [feature.numerator, feature.denominator]
        return parts + [over_all_keys(part) for part in parts] if feature.prior > 0 else parts
    return []


class FeatureSet:
    """Features, compiled. Raises ProjectError with everything that is wrong with them.

    `columns` are the numeric columns in their order: the declared features, then the numeric attributes of
    `entities` as "film_year". `lists` are the features that are lists of values (last n, top k, the last of a
    string). `fingerprint` names the definitions and the law: state and models made under another one are refused.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        entities: Sequence[Entity] = (),
        context: Mapping[str, FieldType] | None = None,
    ) -> None:
        self.features, self.entities, self.context = tuple(features), tuple(entities), dict(context or {})
        schemas = list({id(a.stream.event): a.stream.event for f in features for a in aggregates_of(f)}.values())
        found = problems(self.features, schemas, self.entities, self.context)
        if found:
            raise ProjectError(found)
        self.by_name: dict[str, Feature] = {feature.name: feature for feature in self.features}
        self.program = Program(a for feature in self.features for a in aggregates_of(feature))
        self.attributes = numeric_attributes(self.entities)
        self.lists = tuple(f.name for f in self.features if self._is_list(f))
        self.columns = (*(f.name for f in self.features if f.name not in self.lists), *self.attributes)
        self.fingerprint = self._fingerprint()

    def needs(self, name: str) -> frozenset[str]:
        """The entities whose ids must be given to read a column or a list. Raises KeyError with the nearest name."""
        if name in self.attributes:
            return frozenset([self.attributes[name][0]])
        if name not in self.by_name:
            raise KeyError(f"no feature {name!r}; {nearest(name, [*self.by_name, *self.attributes])}")
        feature = self.by_name[name]
        if isinstance(feature, RequestFeature):
            known = [i for i in feature.inputs if i in self.by_name or i in self.attributes]
            return frozenset().union(*map(self.needs, known)) if known else frozenset()
        return frozenset(entity_of(part) for a in aggregates_of(feature) for part in a.by)

    def readable(self, keys: Iterable[str]) -> tuple[str, ...]:
        """The columns, then the lists, that can be read when ids of just these entities are given."""
        given = frozenset(keys)
        return tuple(name for name in (*self.columns, *self.lists) if self.needs(name) <= given)

    def _is_list(self, feature: Feature) -> bool:
        return isinstance(feature, Aggregate) and self.program.output(feature).length > 0

    def _fingerprint(self) -> str:
        described = [_described(feature) for feature in self.features]
        typed = {entity.name: attribute_types(entity) for entity in self.entities}
        text = json.dumps([LAW, MAX_FUTURE_MS, described, typed, sorted(self.context)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def numeric_attributes(entities: Iterable[Entity]) -> dict[str, tuple[str, str]]:
    """Column name, such as "film_year", to (entity, attribute), for attributes that are numbers or booleans."""
    return {
        f"{entity.name}_{name}": (entity.name, name)
        for entity in entities
        for name, known in attribute_types(entity).items()
        if known in ("int", "float", "bool") and name != "available"
    }


def _described(feature: Feature) -> Any:
    if isinstance(feature, RequestFeature):
        return [feature.name, *used_code(feature.function)]
    if isinstance(feature, Ratio):
        return [feature.name, _described(feature.numerator), _described(feature.denominator), feature.prior]
    if not isinstance(feature, Aggregate):
        raise TypeError(f"{feature.place}: a feature is an aggregate, a ratio or a request feature, found {feature!r}")
    conditions = [[c.field, c.comparison, c.value] for c in feature.stream.conditions]
    window = window_of(feature)
    return [
        feature.name, feature.operation, feature.stream.event.kind, conditions, feature.by, feature.value,
        type_of(feature.stream.event, feature.value or ""), [window.length, window.hop] if window else None,
        feature.n, feature.half_life, feature.error,
    ]  # fmt: skip
