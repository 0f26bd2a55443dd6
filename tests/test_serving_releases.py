"""Releases that change while requests arrive, and releases that cannot be served."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import pytest

from shortlist.training.releases import Registry
from tests.serving_world import fill, publish, running, settings_of

pytestmark = pytest.mark.usefixtures("wherever")


class Load:
    """Clients that ask without a pause, and what they were answered."""

    def __init__(self, url: str) -> None:
        self.url, self.statuses, self.releases = url, Counter[int](), Counter[str]()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(3)]

    def run(self, number: int) -> None:
        with httpx.Client(base_url=self.url) as client:
            while not self.over.is_set():
                answer = client.post("/recommend", json={"user": f"user-{number}"})
                self.statuses[answer.status_code] += 1
                body = answer.json()
                self.releases[body["release"]] += 1
                assert len(body["items"]) == 10

    def served(self, release: str) -> bool:
        return self.releases[release] > 20

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_releases_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    fill(tmp_path)
    first = publish(tmp_path)
    registry = Registry(settings_of(tmp_path).place("releases"))
    with running(tmp_path) as server:
        server.wait_ready()
        with Load(server.url) as load:
            for seed in (1, 2, 3):
                version = publish(tmp_path, seed)
                assert server.wait_until(partial(load.served, version), 20)
            registry.rollback("the test wants the one before")
            assert server.wait_until(lambda: httpx.get(f"{server.url}/health").json()["release"] != version, 20)
    assert set(load.statuses) == {200}
    assert load.releases[first] > 0
    assert len(load.releases) == 4


def test_a_release_that_cannot_be_loaded_leaves_the_old_one_serving(tmp_path: Path) -> None:
    fill(tmp_path)
    good, bad = publish(tmp_path), publish(tmp_path, 1, promote=False)
    releases = settings_of(tmp_path).place("releases")
    (releases / bad / "rankers/logistic_regression/linear.json").write_text("{}")
    with running(tmp_path) as server:
        server.wait_ready()
        pointer = json.loads((releases / "champion.json").read_text())
        (releases / "champion.json").write_text(json.dumps({**pointer, "champion": bad, "previous": good}))
        assert server.wait_until(lambda: "release" in server.service.problems, 20)
        health = httpx.get(f"{server.url}/health").json()
        assert (health["status"], health["release"]) == ("degraded", good)
        assert "damaged" in health["problems"][0]
        assert f"{good} goes on serving" in health["problems"][0]
        assert httpx.get(f"{server.url}/ready").status_code == 200
        with httpx.Client(base_url=server.url) as client:
            assert client.post("/recommend", json={"user": "user-1"}).json()["release"] == good
        assert 'shortlist_release_swaps_total{outcome="refused"} 1.0' in httpx.get(f"{server.url}/metrics").text
        Registry(releases).promote(good, "back")
        assert server.wait_until(lambda: not server.service.problems, 20)


def test_a_release_of_other_features_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path, fingerprint="f" * 64)
    with running(tmp_path) as server:
        assert server.wait_until(lambda: "release" in server.service.problems, 20)
        missing = httpx.get(f"{server.url}/ready").json()["waiting_for"][0]
        assert "train again" in missing
        answer = httpx.post(f"{server.url}/recommend", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
