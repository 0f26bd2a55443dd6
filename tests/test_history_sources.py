"""Sources made of the user's history: each fitted as its paper says, its next answer follows the next event."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.events.labels import ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.hashing import hash_strings
from shortlist.features.table import FeatureTable
from shortlist.framing.objective import Objective
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.project import Project
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import NotSeen
from shortlist.retrieval.models import item_weights
from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.models.item_weights import WEIGHTS, ItemWeights, Said, greatest
from shortlist.retrieval.specs import (
    CoVisitation,
    GraphFilter,
    HistorySpec,
    LinearAutoencoder,
    MatrixFactorisation,
    SourceSpec,
    seen_features,
)
from shortlist.slate.specs import RuleSpec, Seen
from shortlist.training.assembly import Place, load_source
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.rows import Judged, everyone, observed_positives
from shortlist.training.sources.factors import fit_factors, halves
from shortlist.training.sources.fitting import Lesson, fit_source, row_columns
from shortlist.training.sources.graph import Graph
from shortlist.training.sources.item_weights import (
    Interactions,
    autoencoder,
    covisits,
    fit_item_weights,
)

user, film = Entity("user"), Entity("film")
watch, hide = EventType("watch", user, film), EventType("hide", user, film)
history = watch.by(user).last("film", 20)
SPECS: list[HistorySpec] = [
    CoVisitation(history, quota=5),
    LinearAutoencoder(history, quota=5),
    GraphFilter(history, rank=3, quota=5),
]
FACTORS = MatrixFactorisation(history, quota=5)
Dense = NDArray[np.float64]


def acts(users: int = 60, items: int = 30, pairs: int = 600, seed: int = 0) -> Interactions:
    """Two tastes: even users act on the first half of the items, odd ones on the second."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, users, pairs)
    what = rng.integers(0, items // 2, pairs) + (who % 2) * (items // 2)
    return Interactions.of(
        hash_strings([f"u{n}" for n in who]), hash_strings([f"i{n}" for n in what]), np.arange(pairs)
    )


def dense_of(weights: ItemWeights) -> Dense:
    matrix = np.zeros((len(weights.items), len(weights.items)))
    for row, (start, stop) in enumerate(zip(weights.starts[:-1], weights.starts[1:], strict=True)):
        matrix[row, weights.columns[start:stop]] = weights.weights[start:stop]
    return matrix


def fitted(spec: HistorySpec, of: Interactions, **earlier: float) -> Dense:
    return dense_of(fit_item_weights(spec, of, 0, earlier or None, lambda _: None)[0])


def normalised(of: Interactions, prolific: float = 0.5) -> Dense:
    matrix = of.matrix().toarray().astype(np.float64)
    halved = matrix / matrix.sum(1, keepdims=True) ** prolific / np.sqrt(matrix.sum(0, keepdims=True))
    scaled: Dense = halved / np.linalg.norm(halved, 2)
    return scaled


def test_of_all_items_the_autoencoder_is_the_formula_of_the_paper() -> None:
    matrix = acts().matrix().toarray().astype(np.float64)
    inverse = np.linalg.inv(matrix.T @ matrix + 20.0 * np.eye(matrix.shape[1]))
    expected = np.eye(len(inverse)) - inverse / np.diag(inverse)
    assert np.allclose(fitted(LinearAutoencoder(history, ridge=20.0), acts()), expected, atol=1e-5)


def test_of_some_items_the_autoencoder_is_a_regression_on_the_nearest() -> None:
    matrix = acts().matrix().toarray().astype(np.float64)
    found = fitted(LinearAutoencoder(history, ridge=20.0, neighbours=4), acts())
    nearest = fitted(CoVisitation(history, neighbours=4, popularity=0.5), acts())
    for item in range(len(found)):
        near = np.flatnonzero(nearest[item])
        left, right = matrix[:, near], matrix[:, item]
        expected = np.zeros(len(found))
        expected[near] = np.linalg.solve(left.T @ left + 20.0 * np.eye(len(near)), left.T @ right)
        assert len(near) == 4
        assert np.allclose(found[:, item], expected, atol=1e-5)


def test_the_autoencoder_of_many_items_is_the_same_as_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a table of all pairs has no room, pairs are counted for each item."""
    few = autoencoder(acts().matrix(), 9, [5.0, 50.0], lambda _: None)
    monkeypatch.setattr("shortlist.training.sources.autoencoder.TABLE", 0)
    many = autoencoder(acts().matrix(), 9, [5.0, 50.0], lambda _: None)
    for ridge in (5.0, 50.0):
        assert np.array_equal(many[ridge].toarray(), few[ridge].toarray())
        assert many[ridge].nnz == 9 * 30
    assert not np.array_equal(few[5.0].toarray(), few[50.0].toarray())


def test_a_ridge_that_is_lost_in_the_counts_is_refused() -> None:
    everybody = np.repeat(np.arange(500), 3)
    alike = Interactions.of(everybody.astype(np.uint64), np.tile(np.arange(3, dtype=np.uint64), 500), np.arange(1_500))
    with pytest.raises(NothingToLearnError, match="a ridge of 1e-20 is lost beside the counts"):
        fitted(LinearAutoencoder(history, ridge=1e-20), alike)


@pytest.mark.parametrize("popularity", [0.5, 0.2, 0.0])
def test_co_visitation_is_its_formula(popularity: float) -> None:
    matrix = acts().matrix().toarray().astype(np.float64)
    shared = matrix.T @ (matrix / matrix.sum(1, keepdims=True))
    counts = matrix.sum(0)
    expected = shared / np.sqrt(counts)[:, None] / counts[None, :] ** popularity
    np.fill_diagonal(expected, 0)
    assert np.allclose(fitted(CoVisitation(history, popularity=popularity), acts()), expected, atol=1e-5)
    few = fitted(CoVisitation(history, neighbours=3, popularity=popularity), acts())
    assert (np.count_nonzero(few, axis=1) == 3).all()
    assert np.allclose(np.sort(few, axis=1)[:, -3:], np.sort(expected, axis=1)[:, -3:], atol=1e-5)


def test_co_visits_of_some_items_are_their_rows_of_all() -> None:
    matrix, some = acts().matrix(), np.array([3, 4, 17, 29])
    rows = covisits(matrix, some, [0.2], 5, lambda _: None)[0.2].matrix(30).toarray()
    assert np.array_equal(
        rows, covisits(matrix, np.arange(30), [0.2], 5, lambda _: None)[0.2].matrix(30).toarray()[some]
    )
    assert not rows[np.arange(4), some].any()


@pytest.mark.parametrize("prolific", [0.5, 0.3])
def test_the_graph_filter_is_its_polynomial(prolific: float) -> None:
    halves, sharpness = normalised(acts(), prolific), 2.5
    spread = halves.T @ halves
    right = np.linalg.svd(halves)[2][:3]
    root = np.sqrt(acts().matrix().toarray().sum(0))
    smooth = (root[:, None] * (right.T @ right)) / root[None, :]
    blurred = spread + 0.2 * smooth
    powers = [np.linalg.matrix_power(-sharpness * spread, n) / math.factorial(n) for n in range(5)]
    expected = (sum(powers) @ blurred).T  # a row of the matrix is the answer to one item
    found = fitted(GraphFilter(history, rank=3), acts(), prolific=prolific, low_pass=0.2, sharpness=sharpness)
    assert np.allclose(found, expected, atol=2e-5)
    graph = Graph.of(acts().matrix(), 3, prolific=prolific)
    for answer in (graph.settings(acts().matrix()[:4])[0.2, sharpness], graph.answers(acts().matrix()[:4])):
        assert np.allclose(answer, acts().matrix()[:4].toarray() @ expected, atol=2e-4)


@pytest.mark.parametrize(("prolific", "power"), [(0.5, 1.0), (0.3, 1.0), (0.4, 0.5)])
def test_factors_are_the_truncated_decomposition(prolific: float, power: float) -> None:
    matrix = acts().matrix()
    _, values, right = np.linalg.svd(normalised(acts(), prolific), full_matrices=False)
    root = np.sqrt(matrix.toarray().sum(0))
    expected = (matrix.toarray() / root) @ (right[:5].T * values[:5] ** power) @ right[:5] * root
    spoken, wanted = halves(Graph.of(matrix, 5, 0, prolific), power)
    assert np.allclose(matrix @ spoken @ wanted.T, expected, atol=2e-2 * np.abs(expected).max())
    spec, earlier = MatrixFactorisation(history), {"prolific": prolific, "dimensions": 5, "power": power}
    factors, figures = fit_factors(spec, acts(), 0, earlier, lambda _: None)
    assert figures["dimensions"] == factors.spoken.shape[1] == factors.index.dimensions == 5
    vector = factors.user_vectors(hash_strings(["x"]), acts().items[None, [3, 3, 7]].view(np.int64), {})[0]
    together = spoken[3] + spoken[7]
    assert np.allclose(vector, together / np.linalg.norm(together), atol=1e-5)
    assert np.allclose(factors.index.vectors[2], wanted[2], atol=1e-5)


def test_damaged_factors_are_refused(tmp_path: Path) -> None:
    fit_factors(FACTORS, acts(), 0, None, lambda _: None)[0].save(tmp_path)
    whole = (tmp_path / "factors.npz").read_bytes()
    for damage in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "factors.npz").write_bytes(damage)
        with pytest.raises(ValueError, match="train again"):
            Factors.load(tmp_path)
    (tmp_path / "factors.npz").write_bytes(whole)
    fit_factors(FACTORS, acts(items=20), 0, None, lambda _: None)[0].index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="do not fit together"):
        Factors.load(tmp_path)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.name))
def test_weights_speak_for_items_of_the_same_taste(spec: HistorySpec, tmp_path: Path) -> None:
    weights, figures = fit_item_weights(spec, acts(), 0, None, lambda _: None)
    sums = weights.sums(hash_strings(["i0", "i1", "i2"]))
    alike = np.isin(weights.items, hash_strings([f"i{n}" for n in range(15)]))
    assert sums[alike].min() > sums[~alike].max()
    assert not weights.sums(hash_strings(["stranger"])).any()
    assert (figures["items"], figures["pairs"]) == (30, len(acts()))
    weights.save(tmp_path / "a")
    fit_item_weights(spec, acts(), 0, None, lambda _: None)[0].save(tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert np.array_equal(ItemWeights.load(tmp_path / "a").sums(weights.items[:2]), weights.sums(weights.items[:2]))


def test_of_long_histories_the_newest_part_stands_alone_and_sums_are_measured_from_the_leaders() -> None:
    weights, _ = fit_item_weights(SPECS[0], acts(), 0, None, lambda _: None)
    dense = dense_of(weights)
    history = weights.items[[7, 7, 3, *range(8, 20)]]  # newest first; 7 twice
    said = weights.says(history)
    assert np.allclose(said.sums, dense[[3, *range(7, 20)]].sum(0), atol=1e-5)
    assert np.allclose(said.recent, dense[[3, *range(7, 15)]].sum(0), atol=1e-5)
    found = said.columns("x", np.array([4, -1, 9], np.int32))
    assert found["x_score"] == pytest.approx([said.sums[4], np.nan, said.sums[9]], nan_ok=True)
    assert found["x_recent"] == pytest.approx([said.recent[4], np.nan, said.recent[9]], nan_ok=True)
    lead = (said.sums[[4, 9]] - said.sums.mean()) / said.sums.std()  # all 30 items are among the leaders
    assert found["x_lead"][[0, 2]] == pytest.approx(lead, rel=1e-5)


def test_leaders_are_the_greatest_sums_whatever_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_weights, "LEADERS", 2)
    sums = np.array([0.0, 4.0, 1.0, 2.0], np.float32)
    found = Said(sums, sums).columns("x", np.arange(4, dtype=np.int32))
    assert found["x_lead"] == pytest.approx([-3.0, 1.0, -2.0, -1.0])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.name))
def test_where_nobody_acted_twice_there_is_nothing_to_learn(spec: HistorySpec) -> None:
    nothing = hash_strings([])
    for of in (
        Interactions.of(nothing, nothing, np.arange(0)),
        Interactions.of(hash_strings(["a", "b"]), hash_strings(["x", "y"]), np.arange(2)),
        Interactions.of(hash_strings(["a", "a"]), hash_strings(["x", "x"]), np.arange(2)),
    ):
        with pytest.raises(NothingToLearnError, match="two items"):
            fit_item_weights(spec, of, 0, None, lambda _: None)
        with pytest.raises(NothingToLearnError, match="two items"):
            fit_factors(FACTORS, of, 0, None, lambda _: None)
    two = Interactions.of(hash_strings(["a", "a"]), hash_strings(["x", "y"]), np.arange(2))
    weights, _ = fit_item_weights(spec, two, 0, None, lambda _: None)
    assert np.isfinite(weights.weights).all()


def test_the_most_frequent_items_take_part() -> None:
    whole = acts()
    few = whole.most_frequent(7)
    counts = np.bincount(whole.item)
    assert set(few.items) == set(whole.items[np.argsort(-counts, kind="stable")[:7]])
    assert np.array_equal(few.matrix().sum(0), whole.matrix()[:, np.isin(whole.items, few.items)].sum(0))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 25))
def test_the_greatest_are_those_of_a_stable_sort(values: list[int], n: int) -> None:
    sums, rows = np.array(values, np.float32), np.arange(len(values))
    assert greatest(sums, rows, n).tolist() == sorted(rows, key=lambda row: -values[row])[:n]


@pytest.mark.parametrize(
    "damage", [b"", b"no zip at all", "cut", "other"], ids=["empty", "text", "cut short", "arrays that do not fit"]
)
def test_damaged_weights_are_refused(damage: bytes | str, tmp_path: Path) -> None:
    weights, _ = fit_item_weights(SPECS[0], acts(), 0, None, lambda _: None)
    weights.save(tmp_path)
    path = tmp_path / WEIGHTS
    if damage == "other":
        ItemWeights(weights.items[:-1], weights.starts, weights.columns, weights.weights).save(tmp_path)
    else:
        path.write_bytes(path.read_bytes()[:500] if damage == "cut" else bytes(damage))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train again"):
        ItemWeights.load(tmp_path)


class World:
    """Two tastes in a log, a table that follows it, and a fitted source over both."""

    def __init__(self, spec: SourceSpec, place: Path, slate: Sequence[RuleSpec] = ()) -> None:
        events, labels = [watch, hide], ObservedPositives({watch: 1.0})
        dislike = Objective("hours", {"watch": 1.0, "hide": -10.0})
        whole = Project("world", user, film, events, labels, [history], dislike, sources=[spec], slate=slate)
        self.project = whole
        self.log, features = MemoryLog(self.project.schemas), self.project.feature_set()
        self.table = FeatureTable(features)
        self.log.subscribe(self.table.update)
        for number in range(40):
            side = "ab"[number % 2]
            self.watch(f"u{number}", *(f"{side}{(number + step) % 8}" for step in range(4)))
        known = everyone(self.log, self.project, self.log.position)
        positives = observed_positives(self.log, self.project, known, self.log.position)
        self.lesson = Lesson(self.project, features, self.log, known, positives, self.log.position, 0)
        self.figures = fit_source(spec, self.lesson, place / spec.name, None, lambda *_: None)
        self.catalogue = Catalogue(self.table, "film")
        seen = {feature.name: limit for feature, limit in seen_features(self.project.seen, user, film)}
        filters = (NotSeen(self.catalogue, "user", seen),)
        asker = Asker(self.table, "user")
        stages = load_source(spec, Place(self.project, self.table, self.catalogue, asker, filters, place))
        self.source, (self.hydrator,) = stages.source, stages.hydrators

    def watch(self, who: str, *films: str) -> None:
        self.tell("watch", who, *films)

    def tell(self, kind: str, who: str, *films: str) -> None:
        events = [{"kind": kind, "at": 1_700_000_000_000, "user": who, "film": each} for each in films]
        assert not self.log.append(events, received=1_700_000_000_000).refusals

    def names(self, who: str | None) -> list[str]:
        found = self.source.propose(query(who))
        return [self.catalogue.entities.ids[item] for item in found.items]


def query(who: str | None) -> Query:
    return Query(who, 10, 1_700_000_000_001, "r", Deadline(math.inf))


@pytest.mark.parametrize("spec", [*SPECS, FACTORS], ids=lambda spec: str(spec.name))
class TestSource:
    """What holds for every source of this kind."""

    def test_an_event_changes_the_next_answer(self, spec: SourceSpec, tmp_path: Path) -> None:
        world = World(spec, tmp_path)
        assert world.names("newcomer") == world.names(None) == []
        world.watch("newcomer", "a1")
        first = world.names("newcomer")
        assert len(first) == 5
        assert {name[0] for name in first} == {"a"}
        assert "a1" not in first
        world.watch("newcomer", first[0])
        assert first[0] not in world.names("newcomer")
        world.watch("newcomer", *(f"b{n}" for n in range(7)))
        assert "b7" in world.names("newcomer")

    def test_what_somebody_hid_is_not_proposed_to_them(self, spec: SourceSpec, tmp_path: Path) -> None:
        world = World(spec, tmp_path)
        world.watch("me", "a1")
        first, *others = world.names("me")
        world.tell("hide", "me", first)
        assert first not in world.names("me")
        assert others[0] == world.names("me")[0]
        world.watch("other", "a1")
        assert world.names("other")[0] == first

    def test_everything_may_come_again_where_the_slate_says_so(self, spec: SourceSpec, tmp_path: Path) -> None:
        world = World(spec, tmp_path, [Seen()])
        world.watch("me", "a1", "a2", "a3")
        first = world.names("me")
        assert {"a1", "a2", "a3"} & set(first)
        world.tell("hide", "me", *first)
        assert world.names("me") == first

    def test_what_is_new_or_unknown_is_described_as_missing(self, spec: SourceSpec, tmp_path: Path) -> None:
        world = World(spec, tmp_path)
        world.watch("me", "a1", "premiere")
        items = np.append(world.catalogue.index_of(["a2", "premiere", "b1"]), np.int32(-1))
        described = world.hydrator.describe(query("me"), Candidates(items)).columns
        nothing = world.hydrator.describe(query("stranger"), Candidates(items)).columns
        assert tuple(described) == tuple(nothing) == world.hydrator.columns
        assert f"{spec.name}_score" in described
        for column, values in described.items():
            assert values[0] > values[2]
            assert np.isnan(values[[1, 3]]).all()
            assert np.isnan(nothing[column]).all()

    def test_training_sees_what_serving_sees(self, spec: SourceSpec, tmp_path: Path) -> None:
        world = World(spec, tmp_path)
        world.watch("me", "a1", "b2")
        items = world.catalogue.index_of(["a2", "b3", "a7"])
        served = world.hydrator.describe(query("me"), Candidates(items)).columns
        rows = 3
        judged = Judged(
            np.repeat(hash_strings(["me"]), rows),
            world.catalogue.hashes_of(items),
            np.zeros(rows, np.int64),
            np.full(rows, world.log.position),
            np.full(rows, 1_700_000_000_001),
            np.zeros(rows),
            np.full(rows, np.nan),
        )
        said = row_columns(spec, world.lesson, tmp_path / spec.name, judged)
        assert said.keys() == served.keys()
        for column, values in said.items():
            assert values == pytest.approx(served[column], abs=1e-6)
