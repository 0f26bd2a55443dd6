"""What a user can get wrong in a project file or its settings, and what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shortlist import (
    BoostedTrees,
    Cap,
    Constraints,
    CoVisitation,
    DeepCross,
    Entity,
    EventType,
    FactorizationMachine,
    GraphFilter,
    Guardrail,
    Impression,
    Labels,
    LambdaMART,
    LinearAutoencoder,
    LogisticRegression,
    MatrixFactorisation,
    Objective,
    ObservedPositives,
    Popular,
    Problem,
    Project,
    ProjectError,
    Seen,
    TwoTower,
    load_project,
    load_settings,
)

user = Entity("user", age=int)
film = Entity("film", title=str, genres=list[str], published=int)
watch = EventType("watch", user, film, stars=float | None)
impression = Impression(user, film)
history = watch.by(user).last("film", 50)


def declare(**changes: object) -> Project:
    sound: dict[str, object] = {
        "name": "films",
        "user": user,
        "item": film,
        "events": [watch, impression],
        "labels": ObservedPositives({watch: 1.0}, where=("stars", ">=", 4.0)),
        "features": [watch.by(user).count("7d")],
        "objective": Objective("hours", {"watch": 1.0}, (Guardrail("ndcg@10", at_least=0.01),)),
        "sources": [Popular()],
        "rankers": [LambdaMART(), LogisticRegression()],
    }
    return Project(**{**sound, **changes})  # type: ignore[arg-type]


def only(project: Project) -> Problem:
    problems = project.problems()
    assert len(problems) == 1, problems
    return problems[0]


def test_a_sound_project_has_no_problem() -> None:
    assert declare().problems() == []
    assert declare(labels=Labels(impression, {watch: 1.0}, within="2h")).problems() == []


def test_the_log_takes_attributes_events_and_impressions_without_declaring_them() -> None:
    kinds = [schema.kind for schema in declare(events=[watch]).schemas]
    assert kinds == ["user", "film", "watch", "impression"]
    assert [schema.kind for schema in declare().schemas] == kinds


MISTAKES: dict[str, tuple[dict[str, object], str, str]] = {
    "name": ({"name": "my films!"}, "project name 'my films!'", "letters"),
    "user": ({"user": "user"}, "user is str 'user'", "Entity"),
    "item": ({"item": user}, "user and item are both 'user'", "two different"),
    "entity twice": ({"entities": [Entity("film")]}, "a second entity 'film'", "rename"),
    "entity name": ({"entities": [Entity("the shop")]}, "entity name 'the shop'", "letters"),
    "entity reserved": ({"entities": [Entity("at")]}, "reserved name 'at'", "received"),
    "attribute type": ({"entities": [Entity("shop", opened=dict)]}, "attribute shop.opened has the type dict", "float"),
    "attribute reserved": ({"entities": [Entity("shop", available=bool)]}, "reserved name 'available'", "reserved"),
    "attribute name": ({"entities": [Entity("shop", **{"sq m": int})]}, "attribute shop.sq m", "letters"),
    "no event": ({"events": [watch, "click"]}, "events holds str 'click'", "EventType"),
    "kind twice": ({"events": [watch, EventType("watch", user, film)]}, "a second event type 'watch'", "rename"),
    "kind of entity": ({"events": [watch, EventType("film", user)]}, "'film' has the name of an entity", "rename"),
    "kind name": ({"events": [watch, EventType("class", user)]}, "event type 'class'", "letters"),
    "no keys": ({"events": [watch, EventType("ping")]}, "'ping' names no entity", "EventType"),
    "key type": ({"events": [watch, EventType("ping", user, str)]}, "a key of 'ping' is type", "entity"),  # type: ignore[arg-type]
    "foreign key": ({"events": [watch, EventType("ping", Entity("car"))]}, "the entity 'car'", "`entities`"),
    "other object": ({"events": [watch, EventType("ping", Entity("user"))]}, "the entity 'user'", "own Entity object"),
    "field is key": ({"events": [watch, EventType("ping", user, user=str)]}, "field ping.user", "reserved"),
    "field type": ({"events": [watch, EventType("ping", user, when=tuple)]}, "ping.when has the type tuple", "str"),
    "two types": ({"events": [watch, EventType("p", user, v=int | str)]}, "p.v has the type int | str", "None"),
    "own impression": ({"events": [watch, EventType("impression", user, film)]}, "'impression' is the", "Impression("),
    "context": ({"context": {"now": int}}, "reserved name 'now'", "now"),
    "context type": ({"context": {"device": set}}, "context value 'device' has the type set", "str"),
    "labels": ({"labels": [watch]}, "labels is list", "ObservedPositives"),
    "no gains": ({"labels": ObservedPositives({})}, "the gains dict {}", "{watch: 1.0}"),
    "gain of a name": ({"labels": ObservedPositives({"watch": 1.0})}, "name str 'watch'", "not its name"),  # type: ignore[dict-item]
    "gain zero": ({"labels": ObservedPositives({watch: 0})}, "the gain 0", "above 0"),
    "label event": (
        {"labels": ObservedPositives({EventType("wacht", user, film): 1})},
        "labels name 'wacht', which is not among",
        "did you mean 'watch'?",
    ),
    "where field": (
        {"labels": ObservedPositives({watch: 1}, where=("star", ">", 4))},
        "the field 'star'",
        "did you mean 'stars'?",
    ),
    "where sign": ({"labels": ObservedPositives({watch: 1}, where=("stars", "=>", 4))}, "'=>'", ">="),
    "where value": ({"labels": ObservedPositives({watch: 1}, where=("stars", ">", "4"))}, "with '4'", "type float"),
    "where shape": ({"labels": ObservedPositives({watch: 1}, where=("stars", 4))}, "('stars', 4)", "three parts"),  # type: ignore[arg-type]
    "within": ({"labels": Labels(impression, {watch: 1}, within="a day")}, "'a day'", "'24h'"),
    "undeclared impression": (
        {"events": [watch], "labels": Labels(impression, {watch: 1})},
        "not among the project's events",
        "`events`",
    ),
    "objective": ({"objective": "hours"}, "objective is str 'hours'", "Objective"),
    "proxy": ({"objective": Objective("h", {"wach": 1})}, "proxy 'wach' is no event type", "did you mean 'watch'?"),
    "metric": ({"objective": Objective("h", {}, (Guardrail("ndgc@10", 0.1),))}, "'ndgc@10'", "did you mean 'ndcg@10'?"),
    "method": (
        {"objective": Objective("h", {}, (Guardrail("popluar.ndcg@10", 0.1),))},
        "'popluar'",
        "did you mean 'popular",
    ),
    "no bound": ({"objective": Objective("h", {}, (Guardrail("ndcg@10"),))}, "has no bound", "at_least"),
    "constraint": ({"constraints": Constraints(deadline_ms=0)}, "constraints.deadline_ms is 0", "above 0"),
    "source class": ({"sources": [Popular]}, "the class Popular", "write Popular(...)"),
    "history": ({"sources": [TwoTower(watch.by(user).count())]}, "history is user_watch_count", ".last('film', 50)"),
    "no history": ({"sources": [TwoTower("watch")]}, "history is str 'watch'", ".last('film', 50)"),  # type: ignore[arg-type]
    "tower attribute": (
        {"sources": [TwoTower(history, item_attributes=("genre",))]},
        "attribute of film 'genre'",
        "did you mean 'genres'?",
    ),
    "tower text": ({"sources": [TwoTower(history, user_attributes="age")]}, "attribute of user as 'age'", "('age',)"),
    "attribute and context": (
        {"sources": [TwoTower(history, context=("age",))], "context": {"age": int}},
        "two_tower names 'age', which is an attribute of user and a context value too",
        "rename one of the two",
    ),
    "attribute of a machine and context": (
        {"sources": [FactorizationMachine(("age",))], "context": {"age": int}},
        "factorization_machine names 'age', which is an attribute of user and a context value too",
        "rename one of the two",
    ),
    "quota": ({"sources": [Popular(quota=0)]}, "popular's quota is 0", "at least 1"),
    "quota beyond all": ({"sources": [Popular(quota=501)]}, "popular's quota is 501", "at most 500"),
    "half-life": ({"sources": [Popular(half_life="a year")]}, "popular's half_life is 'a year'", "such as '30d'"),
    "neighbours": ({"sources": [CoVisitation(history, neighbours=2.5)]}, "neighbours is 2.5", "whole number"),  # type: ignore[arg-type]
    "popularity": ({"sources": [CoVisitation(history, popularity=-30)]}, "popularity is -30", "from -1 to 1"),
    "ridge": ({"sources": [LinearAutoencoder(history, ridge=float("nan"))]}, "autoencoder's ridge is nan", "above 0"),
    "one item": ({"sources": [GraphFilter(history, most_items=True)]}, "most_items is True", "at least 2"),
    "dimensions": ({"sources": [MatrixFactorisation(history, dimensions=0)]}, "dimensions is 0", "at least 1"),
    "temperature": ({"sources": [TwoTower(history, temperature=0)]}, "two_tower's temperature is 0", "above 0"),
    "None": ({"sources": [TwoTower(history, batch=None)]}, "two_tower's batch is None", "at least 2"),  # type: ignore[arg-type]
    "order": ({"sources": [TwoTower(history, sequence="yes")]}, "sequence is 'yes'", "True or False"),  # type: ignore[arg-type]
    "no list": ({"rankers": LambdaMART()}, "rankers is LambdaMART", "expected a list"),
    "source name": ({"sources": [Popular(name="../other")]}, "Popular with the name '../other'", "letters"),
    "ranker as source": ({"sources": [LambdaMART()]}, "sources holds LambdaMART", "Popular()"),
    "source as ranker": ({"rankers": [Popular()]}, "rankers holds Popular", "LambdaMART()"),
    "ranker twice": ({"rankers": [LambdaMART(), LambdaMART()]}, "'lambdamart' twice", 'name="..."'),
    "trees' objective": (
        {"rankers": [BoostedTrees("pairwize")]},  # type: ignore[arg-type]
        "pairwize_trees has the objective 'pairwize'",
        "did you mean 'pairwise'?",
    ),
    "one leaf": ({"rankers": [LambdaMART(leaves=1)]}, "lambdamart's leaves is 1", "at least 2"),
    "learning rate": ({"rankers": [DeepCross(learning_rate=0)]}, "deep_cross's learning_rate is 0", "above 0"),
    "width": ({"rankers": [DeepCross(hidden=(64, 0))]}, "deep_cross's hidden is (64, 0)", "such as (128, 64)"),
    "worth nothing": (
        {"rankers": [DeepCross()], "objective": Objective("h", {"watch": 0.0})},
        "deep_cross would blend proxies that are worth nothing: 'watch'",
        "give one of them another weight",
    ),
    "unfinished feature": ({"features": [watch.by(user)]}, "features holds Grouped", ".count()"),
    "feature of nothing": ({"features": [1]}, "features holds int 1", "expected a feature"),
}


@pytest.mark.parametrize(("changes", "found", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_each_mistake_is_said_with_its_place(changes: dict[str, object], found: str, expected: str) -> None:
    problem = only(declare(**changes))
    assert found in problem.found
    assert expected in problem.expected
    file, _, line = problem.place.rpartition(":")
    assert Path(file).name == "test_project.py"
    assert int(line) > 0


def test_every_mistake_is_found_at_once_and_a_feature_among_them() -> None:
    project = declare(
        name="?",
        labels=ObservedPositives({watch: -1}),
        features=[watch.by(film).mean("starz")],
        sources=[None],
        constraints=Constraints(memory_mb=-1),
    )
    assert len(project.problems()) == 4  # features wait until names and types are sound
    sound = declare(labels=ObservedPositives({watch: -1}), features=[watch.by(film).mean("starz")])
    assert any("stars" in problem.expected for problem in sound.problems())
    assert len(sound.problems()) == 2


SOUND = """
from shortlist import Entity, EventType, ObservedPositives, Popular, Project
user = Entity("user", name=str)
film = Entity("film")
watch = EventType("watch", user, film)
project = Project("films", user, film, [watch], ObservedPositives({watch: 1.0}), sources=[Popular()])
"""


def write(folder: Path, text: str) -> Path:
    (folder / "project.py").write_text(text)
    return folder


def test_a_project_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    assert load_project(tmp_path).name == "films"
    assert load_project(tmp_path / "project.py").user.attributes == {"name": str}


def test_a_project_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "names_of_things.py").write_text("NAME = 'neighbour'")
    write(
        tmp_path,
        SOUND.replace('"films"', "NAME") + "\n",
    )
    (tmp_path / "project.py").write_text("from names_of_things import NAME\n" + SOUND.replace('"films"', "NAME"))
    assert load_project(tmp_path).name == "neighbour"


@pytest.mark.parametrize(
    ("text", "line", "found", "expected"),
    [
        (SOUND.replace("project =", "other ="), None, None, None),
        (SOUND.replace("project = ", ""), 0, "declares no Project", "project = Project(...)"),
        (SOUND + "second = Project('b', user, film, [watch], ObservedPositives({watch: 1.0}))\n", 7, "a second", ":6"),
        (SOUND.replace('"film")', '"film"'), 4, "not valid Python", "syntax"),
        (SOUND.replace("[watch]", "[wacth]"), 6, "NameError", "did you mean 'watch'?"),
        (SOUND.replace("Popular, P", "Poplar, P"), 2, "ImportError", "did you mean 'Popular'?"),
        (SOUND.replace("sources=", "source="), 6, "TypeError", "did you mean 'sources'?"),
        (SOUND + "watch.by(user).cuont()\n", 7, "AttributeError", "did you mean 'count'?"),
        (SOUND + "1 / 0\n", 7, "ZeroDivisionError", "without errors"),
        (SOUND + "raise SystemExit(3)\n", 7, "SystemExit", "without errors"),
        (SOUND + "import no_such_thing_at_all\n", 7, "ModuleNotFoundError", "install"),
        (SOUND + "watch.by(user).count().nmae\n", 7, "AttributeError", "did you mean 'name'?"),
        ("\0", 1, "", ""),
    ],
)
def test_a_file_that_fails_is_said_by_line(
    tmp_path: Path, text: str, line: int | None, found: str, expected: str
) -> None:
    if line is None:
        assert load_project(write(tmp_path, text)).name == "films"
        return
    with pytest.raises(ProjectError) as caught:
        load_project(write(tmp_path, text))
    (problem,) = caught.value.problems
    assert problem.place.startswith(str(tmp_path / "project.py"))
    assert not line or problem.place.endswith(f":{line}") or text == "\0"
    assert found in problem.found
    assert expected in problem.expected


def test_a_missing_file_and_mistakes_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no such file"):
        load_project(tmp_path / "nothing")
    with pytest.raises(ProjectError) as caught:
        load_project(write(tmp_path, SOUND.replace("1.0", "0").replace('"films"', '""')))
    assert [problem.place.rpartition(":")[2] for problem in caught.value.problems] == ["6", "6"]


def test_settings_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "shortlist.toml").write_text('port = 9000\nlog = "sqlite:events.db"\nvector_sample = 1\n')
    settings = load_settings(tmp_path, {"SHORTLIST_PORT": "9001", "SHORTLIST_STATE": "file:/var/state"})
    assert (settings.port, settings.vector_sample) == (9001, 1.0)
    assert settings.place("log") == tmp_path / "events.db"
    assert settings.place("state") == Path("/var/state")
    assert load_settings(tmp_path / "elsewhere", {}).port == 8000


@pytest.mark.parametrize(
    ("text", "environment", "place", "found", "expected"),
    [
        ("\nprot = 1", {}, "toml:2", "unknown setting 'prot'", "did you mean 'port'?"),
        ("port = 'http'", {}, "toml:1", "port is 'http'", "expected int"),
        ("port = true", {}, "toml:1", "port is True", "expected int"),
        ("port = 70000", {}, "toml:1", "port is 70000", "0 to 65535"),
        ("vector_sample = nan", {}, "toml:1", "nan", "0 to 1"),
        ("host = 1", {}, "toml:1", "host is 1", "text"),
        ("log = 'kafka://broker'", {}, "toml:1", "kafka is not in this version", "sqlite:PATH"),
        ("state = 'redis://one'", {}, "toml:1", "redis is not in this version", "file:PATH"),
        ("archive = 's3://bucket'", {}, "toml:1", "unknown setting 'archive'", "not in this version"),
        ("log = 'data/log'", {}, "toml:1", "log is 'data/log'", "sqlite:PATH"),
        ("log = 'sqlite:'", {}, "toml:1", "log is", "sqlite:PATH"),
        ("port = ", {}, "toml", "cannot be read", "TOML"),
        ("", {"SHORTLIST_PORT": "many"}, "environment SHORTLIST_PORT", "'many'", "expected int"),
        ("", {"SHORTLIST_PROT": "1"}, "environment SHORTLIST_PROT", "unknown setting", "did you mean 'port'?"),
    ],
)
def test_wrong_settings_are_said_with_their_place(
    tmp_path: Path, text: str, environment: dict[str, str], place: str, found: str, expected: str
) -> None:
    (tmp_path / "shortlist.toml").write_text(text)
    with pytest.raises(ProjectError) as caught:
        load_settings(tmp_path, environment)
    (problem,) = caught.value.problems
    assert place in problem.place
    assert found in problem.found
    assert expected in problem.expected


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    others = {"SHORTLIST_SERVICE_HOST": "10.0.0.1", "SHORTLIST_PORT_80_TCP_ADDR": "10.0.0.1", "SHORTLIST_DATA": "/data"}
    assert load_settings(tmp_path, others).host == "127.0.0.1"


HIDE, SKIP, LOGIN = EventType("hide", user, film), EventType("skip", user, film), EventType("login", user)


def rejecting(**changes: Any) -> Project:
    """A project whose objective weighs three kinds below zero, of which one is no action and one names no item."""
    proxies = {"watch": 1.0, "hide": -10.0, "impression": -0.01, "login": -1.0, "skip": 0.0}
    events = [watch, impression, SKIP, HIDE, LOGIN]
    return declare(**{"events": events, "objective": Objective("hours", proxies), **changes})


def test_labels_and_what_the_objective_weighs_below_zero_count_as_seen() -> None:
    assert declare().seen == {watch: None}
    for labels in (ObservedPositives({watch: 1.0}), Labels(impression, {watch: 1.0})):
        assert rejecting(labels=labels).seen == {watch: None, HIDE: None}


def test_what_the_slate_declares_as_seen_stands_alone_and_adds_up() -> None:
    day = 86_400_000
    assert rejecting(slate=[Seen()]).seen == {}
    assert rejecting(slate=[Seen(SKIP)]).seen == {SKIP: None}
    assert rejecting(slate=[Seen(watch, SKIP, within="2d"), Seen(HIDE)]).seen == {
        watch: 2 * day, SKIP: 2 * day, HIDE: None,
    }  # fmt: skip
    for longer, shorter in (((None, None), ("3d", None)), (("3d", 3 * day), ("1d", day))):
        for lines in ((longer, shorter), (shorter, longer)):
            rules = [Seen(watch, within=within) for within, _ in lines]
            assert rejecting(slate=rules).seen == {watch: longer[1]}


def test_the_features_hold_what_the_filter_reads_and_else_stay_what_they_were() -> None:
    def needed(of: Project) -> tuple[str, ...]:
        return of.feature_set().columns[1 : -len(("user_age", "film_published"))]

    popular = "popularity_watch_365d"
    assert needed(declare()) == ("seen_watch", popular)
    same = declare(slate=[Cap("genres", 2), Seen(watch)])
    assert same.feature_set().fingerprint == declare().feature_set().fingerprint
    assert needed(rejecting()) == ("seen_watch", "seen_hide", popular)
    assert needed(rejecting(slate=[Seen()])) == (popular,)
    lately = [rejecting(slate=[Seen(HIDE), Seen(watch, within=within)]) for within in ("1d", "9d")]
    assert needed(lately[0]) == ("seen_hide", "seen_watch_ago", popular)
    prints = {each.feature_set().fingerprint for each in lately}
    assert len(prints) == 1, "another duration needs no training"
