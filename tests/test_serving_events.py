"""Events over HTTP: durable before the answer, in the features of the next one, and still there after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from shortlist.events.labels import ObservedPositives
from shortlist.events.log import LogLockedError
from shortlist.events.schema import Entity
from shortlist.events.sqlite import SqliteLog
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.project import Project
from shortlist.serving.limits import Limits
from shortlist.serving.recovery import SNAPSHOT
from shortlist.serving.running import Running
from shortlist.settings import Settings

user = Entity("user", age=int)
film = Entity("film", genres=list[str], year=int)
watch = EventType("watch", user, film, seconds=float | None)


def project() -> Project:
    return Project(
        name="films",
        user=user,
        item=film,
        events=[watch],
        labels=ObservedPositives({watch: 1.0}),
        features=[
            watch.by(user).count().named("watched"),
            watch.by(film).count("1d").named("hot"),
            watch.by(user).sum("seconds").named("seconds"),
            watch.by(user).last("film", 3).named("history"),
        ],
        context={"device": str | None, "age_limit": int},
    )


LIMITS = Limits(body_bytes=1_000_000)


def running(folder: Path, limits: Limits = LIMITS) -> Running:
    return Running(project(), Settings(port=0, folder=folder), limits)


def accepting(server: Running) -> None:
    assert server.wait_until(lambda: server.service.live is not None, 60), server.service.problems


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("service")) as server:
        accepting(server)
        yield server.url


def watched(who: str, what: str = "heat", **rest: Any) -> dict[str, Any]:
    return {"kind": "watch", "at": int(time.time() * 1000), "user": who, "film": what, **rest}


def features_of(url: str, who: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = httpx.post(f"{url}/features", json={"user": who}).json()["rows"]
    return {**rows[0]["features"], **rows[0]["lists"]}


def test_an_accepted_event_is_in_the_features_of_the_next_answer(url: str) -> None:
    for number in range(1, 20):
        answer = httpx.post(f"{url}/events", json=watched("ann", f"film-{number}", seconds=2.5))
        assert answer.status_code == 200, answer.text
        assert answer.json()["accepted"] == 1
        known = features_of(url, "ann")
        assert (known["watched"], known["seconds"]) == (number, number * 2.5)
        assert known["history"][0] == f"film-{number}"


def test_an_object_an_array_and_json_lines(url: str) -> None:
    one, two = watched("bob"), watched("bob", "ü" * 300)
    for body in (
        json.dumps(one),
        json.dumps([one, two]),
        f"{json.dumps(one)}\n{json.dumps(two)}\n",
        json.dumps(one, indent=1),
    ):
        answer = httpx.post(f"{url}/events", content=body.encode())
        assert answer.status_code == 200, answer.text
    assert features_of(url, "bob")["watched"] == 6


def test_a_bad_line_is_refused_with_its_reason_and_the_others_are_kept(url: str) -> None:
    lines = [watched("cid"), {**watched("cid"), "kind": "wach"}, watched("cid", seconds="long"), watched("cid")]
    answer = httpx.post(f"{url}/events", content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["accepted"], body["refused_count"]) == (2, 2)
    assert [refused["line"] for refused in body["refused"]] == [2, 3]
    assert "watch" in body["refused"][0]["reason"]
    assert features_of(url, "cid")["watched"] == 2


def test_none_accepted_is_422_with_every_reason(url: str) -> None:
    answer = httpx.post(f"{url}/events", json=[{"kind": "watch"}, 7])
    assert answer.status_code == 422
    body = answer.json()
    assert (body["accepted"], body["refused_count"]) == (0, 2)
    assert body["error"]["code"] == "events_refused"


def test_the_same_id_counts_once_however_often_it_is_sent(url: str) -> None:
    for times in range(3):
        answer = httpx.post(f"{url}/events", json=watched("dee", id="e-1"))
        assert answer.status_code == 200
        assert (answer.json()["accepted"], answer.json()["duplicates"]) == ((1, 0) if times == 0 else (0, 1))
    assert features_of(url, "dee")["watched"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/events", b"", 400),
        ("/events", b"  \n ", 400),
        ("/events", b"{", 422),
        ("/events", b"[1, 2", 422),
        ("/events", b"\xff\xfe", 422),
        ("/events", b"null", 422),
        ("/events", b"[" * 100_000, 422),
        ("/events", b'{"kind": "watch", "at": NaN, "user": "a", "film": "b"}', 422),
        ("/events", b'{"kind": "watch", "at": 1e999, "user": "a", "film": "b"}', 422),
        ("/events", b'{"kind": "watch", "at": 99999999999999999999, "user": "a", "film": "b"}', 422),
        ("/events", b'{"kind": "watch", "at": 1, "user": "", "film": "b"}', 422),
        ("/events", b'{"kind": "watch", "at": 1, "user": "\\ud800", "film": "b"}', 422),
        ("/events", json.dumps({"kind": "watch", "at": 1, "user": "u" * 200_000, "film": "b"}).encode(), 422),
        ("/features", b"", 400),
        ("/features", b"{", 400),
        ("/features", b"[" * 100_000, 422),
        ("/features", b"\xff", 400),
        ("/features", b'{"context": ' + b"[" * 100_000, 400),
        ("/features", b"[]", 422),
        ("/features", b"{}", 422),
        ("/features", b'{"user": 7}', 422),
        ("/features", b'{"user": ""}', 422),
        ("/features", b'{"user": "a", "usr": 1}', 422),
        ("/features", json.dumps({"user": "u" * 1_025}).encode(), 422),
        ("/features", json.dumps({"items": ["i"] * 1_001}).encode(), 422),
        ("/features", b'{"user": "a", "context": {"device": 7}}', 422),
        ("/features", b'{"user": "a", "context": {"divice": "tv"}}', 422),
        ("/features", b'{"user": "a", "context": {"age_limit": 99999999999999999999999}}', 422),
        ("/features", b'{"user": "a", "context": {"age_limit": NaN}}', 400),
        ("/features", b'{"user": "a", "context": 3}', 422),
    ],
)
def test_what_cannot_be_is_4xx_with_a_reason(url: str, path: str, body: bytes, status: int) -> None:
    answer = httpx.post(f"{url}{path}", content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_unknown_names_are_ordinary(url: str) -> None:
    answer = httpx.post(
        f"{url}/features", json={"user": "nobody 🦆", "items": ["nothing"], "context": {"device": "tv"}}
    )
    assert answer.status_code == 200
    row = answer.json()["rows"][0]
    assert row["features"]["watched"] == 0
    assert row["features"]["film_year"] is None
    assert row["lists"]["history"] == []
    assert httpx.post(f"{url}/features", json={"items": ["x", "y"]}).json()["rows"][1]["item"] == "y"


def test_without_a_release_it_says_so_and_answers_all_the_same(url: str) -> None:
    assert httpx.get(f"{url}/ready").status_code == 200
    for path, body in (("/recommend", {}), ("/rank", {"items": ["a"]})):
        answer = httpx.post(f"{url}{path}", json=body)
        assert (answer.status_code, answer.json()["release"], answer.json()["path"]) == (200, "untrained", "popular")
    health = httpx.get(f"{url}/health")
    assert health.status_code == 200
    assert health.json()["release"] == "untrained"
    assert "shortlist train" in health.json()["problems"][0]
    assert health.json()["features_position"] == health.json()["log_position"] > 0


def test_metrics_count_events_and_positions(url: str) -> None:
    httpx.post(f"{url}/events", json=watched("eve"))
    text = httpx.get(f"{url}/metrics").text
    assert 'shortlist_events_total{outcome="accepted"}' in text
    assert "shortlist_log_position " in text
    assert 'shortlist_requests_total{route="/events",status="200"}' in text


def test_many_clients_at_once_lose_nothing(url: str) -> None:
    def post(number: int) -> None:
        with httpx.Client(base_url=url) as client:
            for _ in range(20):
                assert client.post("/events", json=watched("crowd", f"film-{number}")).status_code == 200

    clients = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert features_of(url, "crowd")["watched"] == 160


def test_a_snapshot_is_taken_at_the_end_and_used_at_the_start(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        accepting(server)
        httpx.post(f"{server.url}/events", json=[watched("ann") for _ in range(50)])
    assert (tmp_path / "data/state" / SNAPSHOT).exists()
    with running(tmp_path) as server:
        accepting(server)
        assert server.service.live is not None
        recovery = server.service.live.recovery
        assert (recovery.restored, recovery.position, recovery.problem) == (50, 50, "")
        assert features_of(server.url, "ann")["watched"] == 50


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another log"])
def test_a_bad_snapshot_is_not_used_and_said_plainly(tmp_path: Path, damage: str) -> None:
    with running(tmp_path) as server:
        accepting(server)
        httpx.post(f"{server.url}/events", json=[watched("ann") for _ in range(50)])
    snapshot = tmp_path / "data/state" / SNAPSHOT
    content = bytearray(snapshot.read_bytes())
    for place in range(4_096, len(content), 512):
        content[place] ^= 1
    if damage == "of another log":
        for file in (tmp_path / "data").glob("log*"):
            if file.is_file():
                file.unlink()
    else:
        snapshot.write_bytes({"cut": bytes(content[:5_000]), "flipped": bytes(content), "empty": b""}[damage])
    with running(tmp_path) as server:
        accepting(server)
        assert server.service.live is not None
        recovery = server.service.live.recovery
        assert recovery.restored == 0
        assert "features.snapshot" in recovery.problem
        assert features_of(server.url, "ann")["watched"] == (0 if damage == "of another log" else 50)


def test_a_log_that_another_process_writes_to_ends_the_service_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        accepting(server)
        second = running(tmp_path)
        with pytest.raises(LogLockedError, match="data/log"):
            second.run()


def test_a_log_that_cannot_be_written_is_503_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        accepting(server)
        assert server.service.live is not None
        server.service.live.log.close()
        answer = httpx.post(f"{server.url}/events", json=watched("ann"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")


SERVER = """
import sys
from pathlib import Path
from tests.test_serving_events import running
server = running(Path(sys.argv[1]))
print(server.port, flush=True)
server.run()
"""


def started(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    for _ in range(1_000):
        try:
            if httpx.post(f"{url}/features", json={"user": "x"}).status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError("the service did not start")


def test_kill_9_while_events_arrive_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    process, url = started(tmp_path)
    acknowledged: list[int] = []
    lock = threading.Lock()

    def post(number: int) -> None:
        with httpx.Client(base_url=url) as client:
            for count in range(10_000):
                event = watched(f"user-{number}", f"film-{count % 50}", id=f"{number}-{count}", seconds=count / 7)
                try:
                    answer = client.post("/events", json=event)
                except httpx.TransportError:
                    return
                assert answer.json()["accepted"] == 1
                with lock:
                    acknowledged.append(number)

    clients = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    while len(acknowledged) < 400:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for client in clients:
        client.join()

    process, url = started(tmp_path)
    served = {number: features_of(url, f"user-{number}") for number in range(4)}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    for number, known in served.items():
        assert acknowledged.count(number) <= known["watched"] <= acknowledged.count(number) + 1

    log = SqliteLog(tmp_path / "data/log.db", project().schemas, read_only=True)
    features = FeatureSet(project().features, project().all_entities, project().context)
    table = FeatureTable(features)
    for batch in log.scan():
        table.update(batch)
    replayed = table.read(
        {"user": [f"user-{n}" for n in range(4)]}, int(time.time() * 1000), {}, ("watched", "seconds")
    )
    for number, known in served.items():
        np.testing.assert_array_equal([known["watched"], known["seconds"]], replayed.values[:, number])
