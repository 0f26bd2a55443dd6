"""The two towers: what they learn, that ONNX says what torch says, and that nothing surprising breaks them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.entities import Ragged
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.models.towers import (
    FACTS,
    HISTORY,
    USER_MODEL,
    USERS,
    VOCABULARY,
    AttributeColumn,
    Towers,
    attributes_of,
)
from shortlist.retrieval.specs import TwoTower
from shortlist.retrieval.vectors.nearest import TowerSource
from shortlist.training.towers.data import TowerExamples, TowerItems
from shortlist.training.towers.fitting import UNIFORM, fit_towers, prepared

user = Entity("user", age=int, country=str, tastes=list[str])
film = Entity("film", genres=list[str], year=int)
watch = EventType("watch", user, film)
history = watch.by(user).last("film", 8)
SPEC = TwoTower(
    history,
    ("age", "country", "tastes"),
    ("genres", "year"),
    ("device", "hour"),
    dimensions=32,
    epochs=8,
    batch=256,
    quota=20,
)
FILMS, USERS_KNOWN = 200, 60


def named(kind: str, numbers: NDArray[np.int64]) -> Hashes:
    return hash_strings([f"{kind}{number}" for number in numbers])


def listed(kind: str, rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(named(kind, np.array([value for row in rows for value in row], np.int64)), offsets)


def checkerboard(n: int = 6_000, seed: int = 0) -> tuple[TowerExamples, TowerItems, NDArray[np.int64]]:
    """Even users act on even films only, odd users on odd ones; within these, films are equally popular."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, USERS_KNOWN, n)
    what = rng.integers(0, FILMS // 2, n) * 2 + who % 2
    before = rng.integers(0, FILMS // 2, (n, 8)) * 2 + (who % 2)[:, None]
    past = named("f", before.ravel()).reshape(n, 8)
    past[np.arange(8)[None, :] >= rng.integers(0, 9, n)[:, None]] = 0
    columns: dict[str, AttributeColumn] = {
        "age": np.where(rng.random(n) < 0.2, np.nan, rng.normal(40, 10, n)),
        "country": listed("c", [[int(value)] if value else [] for value in rng.integers(0, 4, n)]),
        "tastes": listed("t", [list(range(value)) for value in rng.integers(0, 4, n)]),
        "hour": rng.integers(0, 24, n).astype(np.float64),
        "device": listed("d", [[int(value)] for value in rng.integers(0, 3, n)]),
    }
    examples = TowerExamples(named("u", who), past, named("f", what), np.arange(n, dtype=np.int64), columns)
    films = np.arange(FILMS)
    items = TowerItems(
        named("f", films),
        {
            "genres": listed("g", [[number % 5, number % 3 + 10] for number in range(FILMS)]),
            "year": films.astype(np.float64),
        },
    )
    return examples, items, who


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Towers, Path, float]:
    directory = tmp_path_factory.mktemp("towers")
    examples, items, _ = checkerboard()
    report = fit_towers(SPEC, examples, items, directory, seed=1)
    assert report.recall_at == FILMS // 4
    return Towers.load(directory), directory, report.recall


def rows_of(columns: dict[str, AttributeColumn], n: int) -> dict[str, AttributeColumn]:
    """The first n rows."""
    return {
        name: Ragged(column.values[: column.offsets[n]], column.offsets[: n + 1])
        if isinstance(column, Ragged)
        else column[:n]
        for name, column in columns.items()
    }


def nothing_known(n: int) -> dict[str, AttributeColumn]:
    none = Ragged(np.empty(0, np.uint64), np.zeros(n + 1, np.int64))
    return {"age": np.full(n, np.nan), "hour": np.full(n, np.nan), "country": none, "tastes": none, "device": none}


def test_a_checkerboard_is_learned_far_beyond_popularity(trained: tuple[Towers, Path, float]) -> None:
    towers, _, recall = trained
    assert recall > 0.4  # knowing only what is popular finds a quarter; knowing the user's colour finds half
    examples, _, who = checkerboard(seed=5)
    vectors = towers.user_vectors(examples.user[:200], examples.history[:200], rows_of(dict(examples.columns), 200))
    found, _ = towers.index.search(vectors, 50)
    colour = {int(value): number % 2 for number, value in enumerate(named("f", np.arange(FILMS)))}
    right = [
        [colour[int(towers.items[row])] == one % 2 for row in rows] for rows, one in zip(found, who[:200], strict=True)
    ]
    assert np.mean(right) > 0.95


def test_a_newcomer_is_known_by_history_alone(trained: tuple[Towers, Path, float]) -> None:
    towers, _, _ = trained
    past = named("f", np.arange(0, 16, 2))[None, :].repeat(2, axis=0)
    past[1] = named("f", np.arange(1, 17, 2))
    vectors = towers.user_vectors(hash_strings(["new", "newer"]), past.view(np.int64), nothing_known(2))
    found, _ = towers.index.search(vectors, 50)
    even = {int(value) for value in named("f", np.arange(0, FILMS, 2))}
    shares = [np.mean([int(towers.items[row]) in even for row in rows]) for rows in found]
    assert shares[0] > 0.95
    assert shares[1] < 0.05


def test_what_is_popular_is_what_a_newcomer_gets(tmp_path: Path) -> None:
    """In-batch negatives are popular ones; without the correction for that, popularity would not be learned."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, FILMS + 1)
    what = rng.choice(FILMS, 6_000, p=shares / shares.sum())
    who, past = named("u", rng.integers(0, 500, 6_000)), np.zeros((6_000, 8), np.int64)
    examples = TowerExamples(who, past, named("f", what), np.arange(6_000, dtype=np.int64), {})
    spec = TwoTower(history, dimensions=16, epochs=10, batch=32, learning_rate=0.003)
    fit_towers(spec, examples, TowerItems(named("f", np.arange(FILMS)), {}), tmp_path, epochs=10)
    towers = Towers.load(tmp_path)
    vector = towers.user_vectors(np.zeros(1, np.uint64), past[:1], {})[0]
    found = towers.items[towers.index.search(vector, 20)[0]]
    assert np.isin(found, named("f", np.arange(30))).mean() > 0.8
    logits = towers.item_vectors[towers.rows_of(named("f", np.arange(100)))] @ vector / spec.temperature
    slope = np.polyfit(np.log(shares[:100]), logits, 1)[0]
    assert 0.75 < slope < 1.25, "logits are log probabilities, up to a constant"


def test_log_q_is_the_chance_to_be_in_a_batch() -> None:
    examples, items, _ = checkerboard(400)
    spec = replace(SPEC, batch=50)
    fitting, _ = prepared(spec, examples, items, 0)
    rng = np.random.default_rng(0)
    present = np.zeros(FILMS)
    for _ in range(4_000):
        batch = [fitting.positive.numpy()[rng.integers(0, 400, 50)], rng.integers(0, FILMS, int(UNIFORM * 50))]
        present[np.unique(np.concatenate(batch))] += 1
    assert np.abs(np.exp(fitting.log_q.numpy()) - present / 4_000).max() < 0.04


def test_attributes_of_several_users_are_told_apart() -> None:
    log = MemoryLog([user.schema])
    table = FeatureTable(FeatureSet([], [user]))
    log.subscribe(table.update)
    log.append([{"kind": "user", "at": 1, "user": "a", "age": 5, "tastes": ["x", "y"]}])
    log.append([{"kind": "user", "at": 1, "user": "b", "country": "z", "tastes": ["y"]}])
    who = hash_strings(["b", "nobody", "a"])
    now = attributes_of(table.entities["user"], ("age", "country", "tastes"), who)
    assert np.array_equal(np.asarray(now["age"]), [np.nan, np.nan, 5.0], equal_nan=True)
    country, tastes = now["country"], now["tastes"]
    assert isinstance(country, Ragged)
    assert isinstance(tastes, Ragged)
    assert (country.offsets.tolist(), country.values.tolist()) == ([0, 1, 1, 1], hash_strings(["z"]).tolist())
    assert (tastes.offsets.tolist(), tastes.values.tolist()) == ([0, 1, 1, 3], hash_strings(["y", "x", "y"]).tolist())
    before = attributes_of(table.entities["user"], ("age",), who, np.array([1, 1, 0]))
    assert np.isnan(np.asarray(before["age"])).all()


def test_nobody_without_history_or_attributes_has_a_vector(trained: tuple[Towers, Path, float]) -> None:
    towers, _, _ = trained
    vectors = towers.user_vectors(np.zeros(3, np.uint64), np.zeros((3, 8), np.int64), nothing_known(3))
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert towers.user_vectors(np.zeros(0, np.uint64), np.zeros((0, 8), np.int64), nothing_known(0)).shape == (0, 32)


@pytest.mark.parametrize("sequence", [False, True])
def test_onnx_says_what_torch_says(tmp_path: Path, sequence: bool) -> None:
    examples, items, _ = checkerboard(1_500)
    order, spec = np.argsort(items.hashes), replace(SPEC, sequence=sequence)
    assert fit_towers(spec, examples, items, tmp_path, seed=3, epochs=2).epochs == 2
    towers = Towers.load(tmp_path)
    fitting, _ = prepared(spec, examples, items, 3)
    model = fitting.model
    vocabulary = np.load(tmp_path / VOCABULARY)
    with torch.no_grad():
        model.user.ids.copy_(torch.from_numpy(np.load(tmp_path / USERS)))
        table = torch.from_numpy(np.load(tmp_path / HISTORY))
        model.item.ids.copy_(table[:, :-1])
        model.worth.copy_(table[:, -1:])
        for name, values in model.user.values.items():
            values.copy_(torch.from_numpy(vocabulary[f"table_{name}"]))
        import onnx

        weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / USER_MODEL).graph.initializer}
        model.recency.copy_(torch.from_numpy(weights["recency"].copy()))
        model.user.numbers.copy_(torch.from_numpy(weights["scale"].copy()))
        for name in ("inner", "inner_bias", "outer", "outer_bias"):
            getattr(model.user, name).copy_(torch.from_numpy(weights[name].copy()))
        for name, held in model.sequence.named_parameters() if model.sequence else ():
            held.copy_(torch.from_numpy(weights[name].copy()))
            assert held.abs().max() > 0.01
    expected = fitting.user_vectors(torch.arange(len(examples))).numpy()
    answered = towers.user_vectors(examples.user, examples.history, examples.columns)
    assert np.abs(answered - expected).max() < 1e-5
    assert towers.items.tolist() == items.hashes[order].tolist()


def test_the_same_examples_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    examples, items, _ = checkerboard(1_200)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit_towers(SPEC, examples, items, tmp_path / name, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert (tmp_path / "a" / USERS).read_bytes() != (tmp_path / "c" / USERS).read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_items_in_another_order_give_the_same_model(tmp_path: Path) -> None:
    examples, items, _ = checkerboard(600)
    other = np.random.default_rng(0).permutation(FILMS)
    genres, year = items.columns["genres"], items.columns["year"]
    assert isinstance(genres, Ragged)
    assert not isinstance(year, Ragged)
    pairs = genres.values.reshape(FILMS, 2)[other]
    shuffled = TowerItems(items.hashes[other], {"genres": Ragged(pairs.ravel(), genres.offsets), "year": year[other]})
    fit_towers(SPEC, examples, items, tmp_path / "a", epochs=1)
    fit_towers(SPEC, examples, shuffled, tmp_path / "b", epochs=1)
    assert np.array_equal(Towers.load(tmp_path / "a").item_vectors, Towers.load(tmp_path / "b").item_vectors)


def test_one_user_one_item_and_one_example_are_enough(tmp_path: Path) -> None:
    spec = TwoTower(history, dimensions=8)
    one = hash_strings(["only"])
    examples = TowerExamples(one, np.zeros((1, 8), np.int64), one, np.zeros(1, np.int64), {})
    report = fit_towers(spec, examples, TowerItems(one, {}), tmp_path)
    assert math.isnan(report.recall)
    towers = Towers.load(tmp_path)
    vector = towers.user_vectors(one, np.zeros((1, 8), np.int64), {})[0]
    assert towers.index.search(vector, 10)[0].tolist() == [0]


@pytest.mark.parametrize("which", ["no items", "no examples", "unknown item", "twice", "lengths"])
def test_what_cannot_be_learned_from_is_refused_with_its_reason(tmp_path: Path, which: str) -> None:
    examples, items, _ = checkerboard(50)
    none = TowerExamples(np.empty(0, np.uint64), np.empty((0, 8)), np.empty(0, np.uint64), np.empty(0, np.int64), {})
    cases = {
        "no items": (examples, TowerItems(np.empty(0, np.uint64), {}), "catalogue is empty"),
        "no examples": (none, items, "no positive examples"),
        "unknown item": (replace(examples, item=named("x", np.arange(50))), items, "50 of 50 positives"),
        "twice": (examples, TowerItems(np.repeat(items.hashes, 2), {}), "distinct"),
        "lengths": (replace(examples, at=examples.at[:9]), items, "different lengths"),
    }
    given, catalogue, reason = cases[which]
    with pytest.raises(ValueError, match=reason):
        fit_towers(SPEC, given, catalogue, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [USER_MODEL, FACTS, VOCABULARY, USERS, HISTORY])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_towers_are_refused(
    trained: tuple[Towers, Path, float], tmp_path: Path, name: str, damage: str
) -> None:
    _, directory, _ = trained
    for path in directory.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="train again"):
        Towers.load(tmp_path)


def live(trained: tuple[Towers, Path, float]) -> tuple[MemoryLog, TowerSource, Catalogue]:
    log = MemoryLog([watch, user.schema, film.schema])
    table = FeatureTable(FeatureSet([history], [user, film], {"device": str, "hour": float}))
    log.subscribe(table.update)
    catalogue = Catalogue(table, "film")
    return log, TowerSource("two_tower", trained[0], catalogue, Asker(catalogue.table, "user"), SPEC.quota), catalogue


def ask(who: str | None, **context: object) -> Query:
    return Query(who, 10, 10_000, "r", Deadline(math.inf), context)


def test_the_source_follows_the_catalogue_and_the_history(trained: tuple[Towers, Path, float]) -> None:
    log, source, catalogue = live(trained)
    assert len(source.propose(ask("u1"))) == 0
    films = [f"f{number}" for number in np.random.default_rng(0).permutation(FILMS)]
    log.append(
        [{"kind": "film", "at": 1, "film": name, "genres": ["g1"], "year": 2000} for name in ("new", *films[:150])]
    )
    found = source.propose(ask(None))
    assert len(set(found.items.tolist())) == SPEC.quota
    log.append([{"kind": "film", "at": 2, "film": name} for name in films[150:]])
    log.append([{"kind": "watch", "at": 100 + n, "user": "fresh", "film": f"f{2 * n}"} for n in range(8)])
    query = ask("fresh", device="d1", hour=3)
    names = [catalogue.entities.ids[item] for item in source.propose(query).items]
    assert np.mean([int(name[1:]) % 2 == 0 for name in names]) > 0.9
    described = source.describe(query, Candidates(catalogue.index_of(["new", names[0], names[-1], "nowhere"])))
    score = described.columns["two_tower_score"]
    assert np.isnan(score[[0, 3]]).all()
    assert 1.0001 >= score[1] >= score[2] >= -1.0001
    assert np.array_equal(source.learn(query)["two_tower_vector"], source.vector(query))


def test_live_and_batch_give_the_same_vector(trained: tuple[Towers, Path, float]) -> None:
    log, source, _ = live(trained)
    log.append([{"kind": "user", "at": 1, "user": "u3", "age": 33, "country": "c2", "tastes": ["t0", "t2"]}])
    log.append([{"kind": "watch", "at": 100 + n, "user": "u3", "film": f"f{n}"} for n in range(3)])
    past = np.zeros((1, 8), np.uint64)
    past[0, :3] = named("f", np.array([2, 1, 0]))
    columns: dict[str, AttributeColumn] = {
        "age": np.array([33.0]),
        "country": listed("c", [[2]]),
        "tastes": listed("t", [[0, 2]]),
        "hour": np.array([5.0]),
        "device": listed("d", [[1]]),
    }
    batch = trained[0].user_vectors(hash_strings(["u3"]), past, columns)[0]
    assert np.array_equal(source.vector(ask("u3", hour=5, device="d1")), batch)


def test_filters_are_answered_with_more_until_there_is_nothing_left(trained: tuple[Towers, Path, float]) -> None:
    log, source, catalogue = live(trained)
    log.append([{"kind": "film", "at": 1, "film": f"f{number}"} for number in range(FILMS)])

    class OnlyFew:
        name = "only_few"

        def __init__(self, divisor: int) -> None:
            self.divisor = divisor

        def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
            return np.asarray(candidates.items % self.divisor == 0, np.bool_)

    for divisor, expected in ((8, SPEC.quota), (50, 4)):
        few = TowerSource(
            "two_tower", trained[0], catalogue, Asker(catalogue.table, "user"), SPEC.quota, [OnlyFew(divisor)]
        )
        items = few.propose(ask("u1")).items
        assert len(set(items.tolist())) == expected
        assert (items % divisor == 0).all()
    del source
