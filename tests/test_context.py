"""What requests said of themselves: logged with every impression, learned from, the same as when serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import (
    Entity,
    EventType,
    Impression,
    Labels,
    ObservedPositives,
    Popular,
    Project,
    TwoTower,
    request_feature,
)
from shortlist.events.log import MemoryLog
from shortlist.features.columns import Rows
from shortlist.features.context import context_of, encode, values_of
from shortlist.features.hashing import hash_strings
from shortlist.features.replay import replay
from shortlist.features.table import FeatureTable
from shortlist.retrieval.models.towers import Towers, context_columns
from shortlist.training.comparing.tradeoffs import trade_offs
from shortlist.training.dataset import fit_sources, survey
from shortlist.training.requests import requests_of
from shortlist.training.rows import columns_of, shown
from shortlist.training.sources.fitting import context_at, examples_of, fit_source, row_columns

DECLARED = {"device": str, "amount": float | None, "night": bool, "wishes": list[str]}
FILMS = 24

user, film = Entity("user"), Entity("film", year=int)
watch, impression = EventType("watch", user, film), Impression(user, film)
history = watch.by(user).last("film", 5)


@request_feature
def on_phone(device: Any) -> Any:
    """Whether it is a phone that asks."""
    return np.where(device == "phone", 1.0, 0.0)


@request_feature
def years_for_the_money(amount: Any, film_year: Any) -> Any:
    """Years per coin."""
    return film_year / amount


def said() -> st.SearchStrategy[dict[str, Any]]:
    number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    return st.fixed_dictionaries(
        {}, optional={"device": st.text(), "amount": number, "night": st.booleans(), "wishes": st.lists(st.text())}
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(said(), max_size=8))
def test_columns_hold_what_was_said_to_the_last_bit(contexts: list[dict[str, Any]]) -> None:
    columns, unreadable = context_of(DECLARED, pa.array([encode(each) for each in contexts], pa.string()))
    assert unreadable == 0
    assert columns.keys() == DECLARED.keys()
    for row, context in enumerate(contexts):
        assert columns["device"][row] == context.get("device")
        assert columns["wishes"][row] == context.get("wishes")
        for name in ("amount", "night"):
            value = context.get(name)
            assert np.isnan(columns[name][row]) if value is None else columns[name][row] == float(value)


def test_what_cannot_be_read_or_is_of_another_type_is_missing_and_counted() -> None:
    texts = [
        '{"device":"phone","amount":2}',
        None,
        "{",
        "[1]",
        '{"device":7,"amount":"much","wishes":"x","more":1}',
        "{",
    ]
    columns, unreadable = context_of(DECLARED, pa.array(texts, pa.string()))
    assert unreadable == 3
    assert columns["device"].tolist() == ["phone", None, None, None, None, None]
    assert columns["amount"][0] == 2.0
    assert np.isnan(columns["amount"][1:]).all()
    assert columns["wishes"].tolist() == [None] * 6
    assert encode({}) is None


def shop(turns: int = 300, users: int = 20) -> tuple[Project, MemoryLog]:
    """On a phone everybody wants films of the one half, elsewhere those of the other; ids and histories say nothing."""
    towers = TwoTower(history, context=("device",), dimensions=16, epochs=6)
    declared: dict[str, Any] = {"device": str, "amount": float}
    features = [history, on_phone, years_for_the_money]
    project = Project(
        "shop",
        user,
        film,
        [watch, impression],
        Labels(impression, {watch: 1.0}),
        features,
        sources=[towers],
        context=declared,
    )
    assert project.problems() == []
    log, rng = MemoryLog(project.schemas), np.random.default_rng(0)
    log.append([{"kind": "film", "at": 0, "film": f"f{n}", "year": 1990 + n} for n in range(FILMS)], received=0)
    for turn in range(turns):
        device, at = ("phone", "desk")[turn % 2], 1_000_000 * (turn + 1)
        half = np.arange(FILMS) % 2 == turn % 2
        wanted = int(rng.choice(np.flatnonzero(half)))
        slate = [wanted, *rng.choice(np.flatnonzero(~half), 3, replace=False).tolist()]
        seen = {"at": at, "user": f"u{rng.integers(users)}"}
        request = {"request": f"r{turn}", "context": encode({"device": device, "amount": 2.0 + turn % 3}), **seen}
        places = [{"film": f"f{n}", "position": place} for place, n in enumerate(slate, 1)]
        events = [{"kind": "impression", **place, **request} for place in places]
        assert not log.append([*events, {"kind": "watch", "film": f"f{wanted}", **seen}], received=at).refusals
    log.append([{"kind": "watch", "at": 10**12, "user": "late", "film": "f0"}], received=10**12)  # closes all windows
    return project, log


def test_rows_that_were_shown_have_the_features_of_their_request() -> None:
    project, log = shop(12)
    assert isinstance(project.labels, Labels)
    rows = shown(log, project, project.labels, 0, log.position, 0)
    columns = columns_of(log, project.feature_set(), project, rows)
    phone = np.array([1.0 if device == "phone" else 0.0 for device in rows.context["device"]])
    assert set(phone) == {0.0, 1.0}
    assert columns["on_phone"].tolist() == phone.tolist()
    by_hash = dict(zip(hash_strings([f"f{n}" for n in range(FILMS)]).tolist(), range(1990, 1990 + FILMS), strict=True))
    expected = [by_hash[film] / amount for film, amount in zip(rows.item.tolist(), rows.context["amount"], strict=True)]
    assert columns["years_for_the_money"] == pytest.approx(expected)


def test_replay_and_table_agree_on_requests_with_and_without_a_context() -> None:
    project, log = shop(3)
    features = project.feature_set()
    table = FeatureTable(features)
    log.subscribe(table.update, 0)
    names = ["on_phone", "years_for_the_money"]
    contexts: list[dict[str, Any]] = [{"device": "phone", "amount": 3.5}, {"device": "desk"}, {}]
    logged, _ = context_of(project.context, pa.array([encode(each) for each in contexts], pa.string()))
    ids = {"user": hash_strings(["u1"] * 3), "film": hash_strings(["f3"] * 3)}
    rows = Rows(ids, np.full(3, log.position), np.full(3, 10**12), logged)
    replayed = replay(log, features, rows, names)
    for row, context in enumerate(contexts):
        served = table.read({"user": ["u1"], "film": ["f3"]}, 10**12, context, names)
        for name in names:
            assert np.array_equal(replayed[name][row : row + 1], served[name], equal_nan=True)


def test_towers_learn_from_the_context_of_the_request_that_led_to_an_action(tmp_path: Path) -> None:
    project, log = shop()
    lesson = survey(project, log, 0, lambda *_: None).lesson
    (spec,) = project.sources
    assert isinstance(spec, TwoTower)
    examples = examples_of(spec, lesson)
    device = examples.columns["device"]
    phone, desk = hash_strings(["phone", "desk"]).tolist()
    assert device.values[:4].tolist() == [phone, desk, phone, desk]  # type: ignore[union-attr]
    assert device.offsets[-2:].tolist() == [300, 300]  # type: ignore[union-attr]  # nobody showed the last one
    fit_source(spec, lesson, tmp_path, None, lambda *_: None)
    towers = Towers.load(tmp_path)
    assert towers.columns == ("device",)
    assert isinstance(project.labels, Labels)
    rows = shown(log, project, project.labels, 0, log.position, 0)
    score = row_columns(spec, lesson, tmp_path, rows)[f"{spec.name}_score"]
    assert score[rows.gain > 0].mean() > score[rows.gain == 0].mean() + 0.3
    never = np.zeros((1, 5), np.int64)
    found = {}
    for name in ("phone", "desk"):
        asked = context_columns(towers.scalings, ("device",), {"device": name})
        vector = towers.user_vectors(hash_strings(["stranger"]), never, asked)[0]
        films = towers.rows_of(hash_strings([f"f{n}" for n in range(FILMS)]))
        scores = towers.index.vectors_of(films) @ vector
        found[name] = float(scores[::2].mean() - scores[1::2].mean())
    assert found["phone"] > found["desk"] + 0.3


def test_the_past_is_asked_as_it_was_with_the_context_of_its_requests() -> None:
    """Half of the films fit what a request says, which is all that is known of who comes but once."""
    project, log = shop(400, 10**9)
    (towers,) = project.sources
    assert isinstance(towers, TwoTower)
    whole = replace(project, sources=[Popular(), replace(towers, batch=32, learning_rate=0.01)])
    methods = {method.name: method for method in trade_offs(whole, log, 0, lambda *_: None).methods}
    recall = {name: methods[name].value("recall@10") for name in ("two_tower", "popularity")}
    assert recall["two_tower"] > recall["popularity"] + 0.2
    requests = requests_of(survey(project, log, 0, lambda *_: None).lesson.positives, 5, 1_000)
    told = [values_of(requests.context, number) for number in range(len(requests))]
    asked = [{"device": ("phone", "desk")[turn % 2], "amount": 2.0 + turn % 3} for turn in range(400)]
    assert told == [*asked, {}]  # nobody showed the last one


def test_a_context_that_nobody_logged_is_named_by_training(tmp_path: Path) -> None:
    project, log = shop(20)
    for labels, count in ((project.labels, 0), (ObservedPositives({watch: 1.0}), 1)):
        ground = survey(replace(project, labels=labels), log, 0, lambda *_: None)
        found = fit_sources(ground, ground.lesson, tmp_path, lambda *_: None).findings
        assert len(found) == count
        assert all("two_tower does not look at the context (device): without impressions" in one for one in found)


def test_values_of_any_type_become_what_a_tower_reads() -> None:
    texts = ['{"device":"phone","amount":2.5,"wishes":["a","b"]}', None, '{"device":"desk","amount":1}']
    context, _ = context_of(DECLARED, pa.array(texts, pa.string()))
    columns = context_at(context, DECLARED, np.array([2, -1, 0, 1]))
    assert columns["amount"] == pytest.approx([1.0, np.nan, 2.5, np.nan], nan_ok=True)
    assert columns["device"].offsets.tolist() == [0, 1, 1, 2, 2]  # type: ignore[union-attr]
    assert columns["device"].values.tolist() == hash_strings(["desk", "phone"]).tolist()  # type: ignore[union-attr]
    assert columns["wishes"].offsets.tolist() == [0, 0, 0, 2, 2]  # type: ignore[union-attr]
    for name, value in (("device", "phone"), ("amount", 2.5), ("wishes", ["a", "b"])):
        scalings: Any = {"amount": None}
        served = context_columns(scalings, (name,), {name: value})[name]
        told = context_at(context, (name,), np.array([0]))[name]
        pairs: Any = [getattr(column, "values", column) for column in (served, told)]
        assert np.array_equal(*pairs)
