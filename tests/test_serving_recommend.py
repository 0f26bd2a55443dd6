"""Slates over HTTP: what is shown, what never is, what is logged of it, and releases that change under load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shortlist.events.sqlite import SqliteLog
from shortlist.monitoring.skew import audit
from shortlist.serving.limits import Limits
from tests.serving_world import FILMS, fill, project, publish, running, settings_of

pytestmark = pytest.mark.usefixtures("wherever")


@pytest.fixture(scope="module")
def folder(wherever: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    place = tmp_path_factory.mktemp("world")
    fill(place)
    publish(place)
    return place


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with running(folder, vector_sample=1.0, deadline_ms=10_000.0) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def ask(client: httpx.Client, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    slate: dict[str, Any] = answer.json()
    return slate


def items(slate: dict[str, Any]) -> list[str]:
    return [ranked["item"] for ranked in slate["items"]]


def tell(client: httpx.Client, **event: Any) -> None:
    answer = client.post("/events", json={"at": int(time.time() * 1000), **event})
    assert answer.json()["accepted"] == 1, answer.text


def test_ten_films_best_score_first_each_once(client: httpx.Client) -> None:
    slate = ask(client, user="user-3")
    scores = [ranked["score"] for ranked in slate["items"]]
    assert len(set(items(slate))) == 10
    assert scores == sorted(scores, reverse=True)
    assert slate["degraded"] == []
    assert slate["release"]
    assert ask(client, user="user-3")["request"] != slate["request"]


@pytest.mark.parametrize("who", [None, "nobody", "ü" * 1024, "🦆", "a b\n\t"])
def test_a_user_whom_nobody_knows_gets_what_is_popular(client: httpx.Client, who: str | None) -> None:
    assert len(items(ask(client, user=who, k=5))) == 5


def test_what_was_seen_is_gone_from_the_next_answer(client: httpx.Client) -> None:
    for _ in range(30):
        top = items(ask(client, user="ann", k=1))[0]
        tell(client, kind="watch", user="ann", film=top)
        assert top not in items(ask(client, user="ann", k=1_000))


def test_all_but_one_seen_and_then_all(client: httpx.Client) -> None:
    everything = items(ask(client, user="bob", k=1_000))
    for one in everything[:-1]:
        tell(client, kind="watch", user="bob", film=one)
    assert items(ask(client, user="bob")) == everything[-1:]
    tell(client, kind="watch", user="bob", film=everything[-1])
    assert items(ask(client, user="bob")) == []


def test_what_is_out_of_stock_is_not_shown_until_it_is_back(client: httpx.Client) -> None:
    top = items(ask(client, user="cid", k=1))[0]
    tell(client, kind="film", film=top, available=False)
    try:
        assert top not in items(ask(client, user="cid", k=1_000))
        assert items(ask(client, "/rank", user="cid", items=[top, "film-7"])) == ["film-7"]
    finally:
        tell(client, kind="film", film=top, available=True)
    assert top in items(ask(client, user="cid", k=1_000))


def test_what_is_excluded_is_not_shown(client: httpx.Client) -> None:
    top = items(ask(client, user="dee", k=3))
    assert not set(top) & set(items(ask(client, user="dee", k=1_000, exclude=[*top, "unheard of"])))
    assert items(ask(client, "/rank", items=["new", "film-1"], exclude=["new"])) == ["film-1"]


def test_k_beyond_the_catalogue_is_all_of_it(client: httpx.Client) -> None:
    assert len(items(ask(client, user="eve", k=1_000))) == FILMS


def test_a_new_item_can_be_shown_at_once(client: httpx.Client) -> None:
    tell(client, kind="film", film="brand new", year=2026)
    try:
        assert "brand new" in items(ask(client, user="eve", k=1_000))
    finally:
        tell(client, kind="film", film="brand new", available=False)


def test_own_items_are_ranked_the_unknown_ones_too(client: httpx.Client) -> None:
    own = ["film-199", "never seen", "film-0", "film-0", "ü" * 1024]
    slate = ask(client, "/rank", user="user-0", items=own)
    assert sorted(items(slate)) == sorted(set(own))
    assert slate["degraded"] == []
    assert items(slate).index("film-0") < items(slate).index("film-199")
    assert items(ask(client, "/rank", user="user-0", items=own, k=1)) == items(slate)[:1]
    assert items(ask(client, "/rank", items=[])) == []


def test_a_deadline_that_cannot_be_held_gets_popularity_and_says_so(client: httpx.Client) -> None:
    slate = ask(client, user="user-0", k=5, deadline_ms=0.001)
    assert len(items(slate)) == 5
    assert {"popular", "features"} <= set(slate["degraded"])
    assert not {f"film-{n}" for n in range(10)} & set(items(slate))


def test_an_explanation_names_sources_filters_features_and_contributions(client: httpx.Client) -> None:
    slate = ask(client, user="user-0", k=3, explain=True)
    explanation = slate["explanation"]
    assert explanation["sources"]["popular"]["proposed"] == 50
    assert set(explanation["filters"]) == {"available", "excluded", "where", "not_seen"}
    assert explanation["versions"]["release"] == slate["release"]
    top = explanation["items"][0]
    assert top["item"] == slate["items"][0]["item"]
    assert top["columns"]["popular_rank"] >= 1
    assert top["features"]["watched"] == 10
    assert "bias" in top["contributions"]
    verbs = [step["verb"] for step in explanation["steps"] if step["verb"] != "understand"]
    assert verbs[:2] == ["propose", "merge"]
    assert (
        ask(client, "/rank", items=["film-1"], explain=True)["explanation"]["items"][0]["features"]["film_year"] == 1991
    )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (path, body, status)
        for path in ("/recommend", "/rank")
        for body, status in (
            (b"", 400),
            (b"{", 400),
            (b"\xff\xfe{}", 400),
            (b'{"k": NaN}', 400),
            (b'{"user": "\\ud800"}', 400),
            (b"null", 422),
            (b"[]", 422),
            (b'"x"', 422),
            (b"[" * 200_000, 422),
            (b'{"items": ["a"], "k": 0}', 422),
            (b'{"items": ["a"], "k": -1}', 422),
            (b'{"items": ["a"], "k": 1001}', 422),
            (b'{"items": ["a"], "k": 1.5}', 422),
            (b'{"items": ["a"], "k": "ten"}', 422),
            (b'{"items": ["a"], "k": 99999999999999999999999999}', 422),
            (b'{"items": ["a"], "user": 7}', 422),
            (b'{"items": ["a"], "user": ""}', 422),
            (json.dumps({"items": ["a"], "user": "u" * 1_025}).encode(), 422),
            (b'{"items": ["a"], "usr": "a"}', 422),
            (b'{"items": ["a"], "exclude": "a"}', 422),
            (b'{"items": ["a"], "exclude": [null]}', 422),
            (b'{"items": ["a"], "deadline_ms": 0}', 422),
            (b'{"items": ["a"], "deadline_ms": 1e999}', 422),
            (b'{"items": ["a"], "deadline_ms": -5}', 422),
            (b'{"items": ["a"], "context": {"minutes": "long"}}', 422),
            (b'{"items": ["a"], "context": {"hours": 1}}', 422),
            (b'{"items": ["a"], "context": []}', 422),
            (b'{"items": ["a"], "explain": 1}', 422),
            (b'{"items": ["a"], "now": 5}', 422),
        )
        if path == "/rank" or b'"items"' not in body
    ]
    + [
        ("/recommend", b'{"k": 0}', 422),
        ("/recommend", b'{"k": -3}', 422),
        ("/recommend", b'{"k": 1001}', 422),
        ("/recommend", b'{"items": ["a"]}', 422),
        ("/rank", b"{}", 422),
        ("/rank", b'{"items": "a"}', 422),
        ("/rank", b'{"items": [""]}', 422),
        ("/rank", b'{"items": [7]}', 422),
        ("/rank", json.dumps({"items": [str(n) for n in range(10_001)]}).encode(), 422),
    ],
)
def test_what_cannot_be_is_4xx_with_a_reason(client: httpx.Client, path: str, body: bytes, status: int) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/rank", {"items": ["a"] * 10_001}, "10001 items; at most 10000 - at `$.items`"),
        ("/features", {"items": ["a"] * 1_001}, "1001 items; at most 1000 - at `$.items`"),
        ("/recommend", {"exclude": ["a"] * 10_001}, "10001 excluded items; at most 10000 - at `$.exclude`"),
        ("/rank", {"items": ["a"], "exclude": ["a"] * 10_001}, "10001 excluded items; at most 10000 - at `$.exclude`"),
        ("/recommend", {"context": {"device": "t" * 16_384}}, "bytes; at most 16384 - at `$.context`"),
    ],
    ids=lambda part: part if isinstance(part, str) and part.startswith("/") else "",
)
def test_what_is_too_much_for_one_request_is_refused_with_the_limit(
    client: httpx.Client, path: str, body: dict[str, Any], reason: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert reason in answer.json()["error"]["message"]


def test_as_much_as_a_request_may_hold_is_taken(client: httpx.Client) -> None:
    assert len(items(ask(client, user="fay", exclude=[f"other-{n}" for n in range(10_000)]))) == 10
    assert items(ask(client, user="fay", where={"year": list(range(1_000))})) == []


def test_the_context_is_typed_and_goes_along(client: httpx.Client) -> None:
    assert len(items(ask(client, user="fay", context={"device": "tv", "minutes": 90}))) == 10


def logged(folder: Path) -> list[dict[str, Any]]:
    log = SqliteLog(settings_of(folder).place("log"), project().schemas, read_only=True)
    rows: list[dict[str, Any]] = []
    for batch in log.scan():
        rows += batch.take(batch.of_kind("impression")).table.to_pylist()
    return rows


def logged_of(folder: Path, request: str, count: int) -> list[dict[str, Any]]:
    for _ in range(200):
        rows = [row for row in logged(folder) if row["impression.request"] == request]
        if len(rows) == count:
            return rows
        time.sleep(0.02)
    raise AssertionError(f"{len(rows)} impressions of {request}, expected {count}")


def test_a_slate_is_logged_as_impressions_with_vectors_that_replay_confirms(client: httpx.Client, folder: Path) -> None:
    slate = ask(client, user="user-5", k=7, context={"device": "tv"})
    rows = logged_of(folder, slate["request"], 7)
    assert [row["film"] for row in rows] == items(slate)
    assert [row["impression.position"] for row in rows] == list(range(1, 8))
    assert {row["impression.release"] for row in rows} == {slate["release"]}
    assert {row["impression.propensity"] for row in rows} == {1.0}
    assert {row["impression.context"] for row in rows} == {'{"device":"tv"}'}
    assert [row["impression.score"] for row in rows] == [ranked["score"] for ranked in slate["items"]]
    assert all(row["impression.vector"] and row["impression.log_position"] <= row["offset"] for row in rows)
    tell(client, kind="watch", user="user-5", film="film-150")
    silent = logged_of(folder, ask(client, user="user-5", k=3)["request"], 3)
    assert {row["impression.context"] for row in silent} == {None}
    log = SqliteLog(settings_of(folder).place("log"), project().schemas, read_only=True)
    report = audit(project().feature_set(), log, "user", "film")
    assert report.vectors >= 10
    assert report.passed, report.to_dict()


def test_what_is_shown_to_nobody_is_not_logged(client: httpx.Client, folder: Path) -> None:
    silent = [
        ask(client, user="gil", log=False),
        ask(client, user=None),
        ask(client, "/rank", user="gil", items=["film-1"]),
    ]
    shown = ask(client, "/rank", user="gil", items=["film-1", "film-2"], log=True)
    logged_of(folder, shown["request"], 2)
    requests = {row["impression.request"] for row in logged(folder)}
    assert not requests & {slate["request"] for slate in silent}


def test_every_route_is_described_and_every_reference_is_there(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    assert api["openapi"].startswith("3.1")
    routes = {(method.upper(), path) for path, methods in api["paths"].items() for method in methods}
    assert routes == {
        *(("POST", path) for path in ("/recommend", "/rank", "/events", "/features")),
        *(("GET", path) for path in ("/health", "/ready", "/metrics", "/openapi.json", "/docs", "/")),
    }
    text = json.dumps(api)
    for reference in set(text.split('"#/components/schemas/')[1:]):
        assert reference.split('"')[0] in api["components"]["schemas"]
    assert set(api["components"]["schemas"]["Context"]["properties"]) == {"device", "minutes"}
    assert {"Event_watch", "Event_film", "Event_impression"} <= set(api["components"]["schemas"])
    asked = api["components"]["schemas"]["RecommendRequest"]["properties"]
    assert asked["exclude"]["maxItems"] == 10_000
    assert asked["where"]["additionalProperties"]["maxItems"] == 1_000
    answer = api["components"]["schemas"]["SlateAnswer"]
    assert "propensities" not in answer["required"]
    assert "null where it was drawn for an earlier answer" in answer["properties"]["propensities"]["description"]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                assert client.request(method, path, json=body["example"]).status_code == 200
            assert {"405", "500"} <= set(operation["responses"])


def test_the_pages_are_whole_and_fetch_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "</html>" in answer.text
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    home = client.get("/").text
    assert '"project":"films"' in home
    assert "popularity.ndcg@10" in home


def test_metrics_tell_stages_and_slates(client: httpx.Client) -> None:
    ask(client, user="user-1")
    text = client.get("/metrics").text
    assert 'shortlist_stage_seconds_count{stage="features",verb="hydrate"}' in text
    assert 'shortlist_slates_total{kind="recommend"}' in text
    assert "shortlist_ready 1.0" in text
    assert "shortlist_release_info" in text


@pytest.mark.parametrize(("films", "users"), [(0, 0), (1, 1), (0, 5), (3, 0)])
def test_next_to_nothing_in_the_log_is_ordinary(tmp_path: Path, films: int, users: int) -> None:
    fill(tmp_path / "full")
    publish(tmp_path / "full")
    fill(tmp_path, films, users)
    releases = settings_of(tmp_path).place("releases")
    releases.parent.mkdir(exist_ok=True)
    settings_of(tmp_path / "full").place("releases").rename(releases)
    with running(tmp_path) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as client:
            assert len(items(ask(client, user="nobody"))) == films
            assert items(ask(client, user="user-0")) == ([] if users else [f"film-{n}" for n in range(films)])
            assert items(ask(client, "/rank", items=["x"])) == ["x"]


SERVER = """
import sys
from pathlib import Path
from tests.serving_world import running
server = running(Path(sys.argv[1]))
print(server.port, flush=True)
server.run()
"""


def test_sigterm_finishes_requests_and_logs_every_impression(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    while httpx.get(f"{url}/ready").status_code != 200:
        time.sleep(0.05)
    slates: list[str] = []

    def keep_asking(number: int) -> None:
        with httpx.Client(base_url=url) as client:
            while True:
                try:
                    slates.append(ask(client, user=f"user-{number}")["request"])
                except httpx.TransportError:
                    return

    clients = [threading.Thread(target=keep_asking, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    while len(slates) < 200:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    for client in clients:
        client.join()
    assert process.returncode == 0
    counts = Counter(row["impression.request"] for row in logged(tmp_path))
    assert {request: counts[request] for request in slates} == dict.fromkeys(slates, 10)
    assert (settings_of(tmp_path).place("state") / "features.snapshot").exists()


def test_stopping_waits_for_impressions_that_a_slow_log_has_not_taken_yet(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path) as server:
        server.wait_ready()
        assert server.service.live is not None
        server.service.live.log.subscribe(lambda batch: time.sleep(0.8))  # noqa: ARG005
        with httpx.Client(base_url=server.url) as client:
            requests = [ask(client, user="ann", k=1)["request"] for _ in range(20)]
        assert server.service.pending_impressions
    assert [row["impression.request"] for row in logged(tmp_path)] == requests


def test_snapshots_are_taken_now_and_then(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, Limits(watch_seconds=0.05, snapshot_seconds=0.2)) as server:
        server.wait_ready()
        place = settings_of(tmp_path).place("state") / "features.snapshot"
        assert server.wait_until(place.exists, 20)
        assert server.wait_until(
            lambda: 'snapshots_total{outcome="written"}' in server.service.metrics.text().decode(), 20
        )
