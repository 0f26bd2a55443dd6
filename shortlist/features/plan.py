"""Which rows of the matrix come from where: worked out once per set of columns, then only followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features import descriptors as k
from shortlist.features.definitions import Aggregate, Ratio, RequestFeature
from shortlist.features.program import FeatureSet, Group, Output, over_all_keys

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class ListPart:
    """A list feature: its columns of the group's list block."""

    name: str
    start: int
    stop: int
    numeric: bool


@dataclass(frozen=True)
class GroupPlan:
    """What to read of one group: output descriptors whose DEST is a row of the matrix, or a column of the list block.

    Where the group's key is an attribute, DEST counts from 0 and `targets` are the rows of the matrix.
    """

    number: int
    group: Group
    outputs: NDArray[np.int64]
    lists: tuple[ListPart, ...]
    list_words: int
    targets: Indexes

    @cached_property
    def widest(self) -> int:
        """The size of the widest distinct count, whose registers the kernels need room to merge."""
        distinct = self.outputs[self.outputs[:, k.READ] == k.READ_DISTINCT]
        return int(distinct[:, k.LENGTH].max(initial=0))


@dataclass(frozen=True)
class RatioPlan:
    """Rows of the matrix: target = (top + prior * all_top / all_bottom) / (bottom + prior)."""

    target: Indexes
    top: Indexes
    bottom: Indexes
    all_top: Indexes
    all_bottom: Indexes
    prior: NDArray[np.float64]


@dataclass(frozen=True)
class RequestPlan:
    """A request feature: its row of the matrix, the function, and each input's name and row (-1: context or now)."""

    target: int
    function: Callable[..., Any]
    inputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """How to fill a matrix of `height` rows whose first rows are the columns `names`; the others are intermediate."""

    names: tuple[str, ...]
    height: int
    groups: tuple[GroupPlan, ...]
    attributes: tuple[tuple[str, str, int], ...]
    plain: RatioPlan | None
    smoothed: RatioPlan | None
    requests: tuple[RequestPlan, ...]
    lists: tuple[str, ...]
    entities: tuple[str, ...]


def planned(features: FeatureSet, columns: Sequence[str] | None, keys: Sequence[str]) -> Plan:
    """The plan for some columns and lists, or all that ids of the entities `keys` are enough for.

    Raises KeyError for an unknown name and ValueError where ids are missing.
    """
    plan = Planner(features, features.readable(keys) if columns is None else columns).plan()
    missing = set(plan.entities) - set(keys)
    if missing:
        raise ValueError(f"ids of {', '.join(sorted(missing))} are missing: the columns asked for need them")
    return plan


class Planner:
    """Builds the plan for some columns and lists of a feature set. Raises KeyError for an unknown name."""

    def __init__(self, features: FeatureSet, wanted: Sequence[str]) -> None:
        self.features = features
        self.lists = tuple(name for name in wanted if name in features.lists)
        self.names = tuple(name for name in wanted if name not in features.lists)
        self.rows: dict[str | Aggregate, int] = {name: row for row, name in enumerate(self.names)}
        self.height = len(self.names)
        self.outputs: list[tuple[Output, int, str]] = []
        self.attributes: list[tuple[str, str, int]] = []
        self.ratios: list[tuple[int, Ratio]] = []
        self.requests: list[RequestPlan] = []
        self.done: set[str] = set()

    def plan(self) -> Plan:
        """The finished plan."""
        needed = frozenset().union(*map(self.features.needs, (*self.names, *self.lists)))
        for name in self.names:
            self._column(name)
        for name in self.lists:
            feature = self.features.by_name[name]
            assert isinstance(feature, Aggregate)
            self.outputs.append((self.features.program.output(feature), 0, name))
        plain = [(row, r) for row, r in self.ratios if not r.prior > 0]
        smoothed = [(row, r) for row, r in self.ratios if r.prior > 0]
        ratios = self._ratio_plan(plain), self._ratio_plan(smoothed)
        numbers = sorted({output.group for output, _, _ in self.outputs})
        groups = tuple(self._group_plan(number) for number in numbers)
        entities = tuple(sorted(needed))
        return Plan(
            self.names, self.height, groups, tuple(self.attributes), *ratios, tuple(self.requests), self.lists, entities
        )

    def _row(self, key: str | Aggregate) -> int:
        if key not in self.rows:
            self.rows[key] = self.height
            self.height += 1
        return self.rows[key]

    def _column(self, name: str) -> int:
        row = self._row(name)
        if name in self.done:
            return row
        self.done.add(name)
        if name in self.features.attributes:
            self.attributes.append((*self.features.attributes[name], row))
            return row
        feature = self.features.by_name[name]
        if isinstance(feature, Aggregate):
            self.outputs.append((self.features.program.output(feature), row, name))
            self.rows.setdefault(replace(feature, label=""), row)
        elif isinstance(feature, Ratio):
            self.ratios.append((row, feature))
        elif isinstance(feature, RequestFeature):
            self._request(feature, row)
        return row

    def _request(self, feature: RequestFeature, row: int) -> None:
        known = {*self.features.by_name, *self.features.attributes}
        inputs = tuple((name, self._column(name) if name in known else -1) for name in feature.inputs)
        self.requests.append(RequestPlan(row, feature.function, inputs))

    def _aggregate(self, aggregate: Aggregate) -> int:
        plain = replace(aggregate, label="")
        if plain not in self.rows:
            self.outputs.append((self.features.program.output(plain), self._row(plain), ""))
        return self.rows[plain]

    def _ratio_plan(self, ratios: Sequence[tuple[int, Ratio]]) -> RatioPlan | None:
        if not ratios:
            return None
        parts = [(row, self._aggregate(r.numerator), self._aggregate(r.denominator)) for row, r in ratios]
        rates = [
            (self._aggregate(over_all_keys(r.numerator)), self._aggregate(over_all_keys(r.denominator)))
            if r.prior > 0
            else (0, 0)
            for _, r in ratios
        ]
        rows = np.array(parts, np.int64).T.copy()
        everything = np.array(rates, np.int64).T.copy()
        prior = np.array([float(r.prior) for _, r in ratios])
        return RatioPlan(rows[0], rows[1], rows[2], everything[0], everything[1], prior)

    def _group_plan(self, number: int) -> GroupPlan:
        group = self.features.program.groups[number]
        mine = sorted((o for o in self.outputs if o[0].group == number), key=lambda o: o[0].tileset)
        descriptors: list[list[int]] = []
        lists: list[ListPart] = []
        targets: list[int] = []
        words = 0
        for output, row, name in mine:
            descriptor = list(output.descriptor)
            if output.length:
                descriptor[k.DEST] = words
                lists.append(ListPart(name, words, words + output.length, output.numeric))
                words += output.length
            else:
                descriptor[k.DEST] = len(targets) if group.expands else row
                targets.append(row)
            descriptors.append(descriptor)
        return GroupPlan(
            number, group, np.array(descriptors, np.int64), tuple(lists), words, np.array(targets, np.int64)
        )
