"""The half of `python -m bench ingest` that goes over HTTP: durable events a second, and how soon they are features."""

from __future__ import annotations

import http.client
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench._load import load
from bench._server import served

PROJECT = Path(__file__).with_name("_rank_project.py")
USERS, ITEMS = 10_000, 2_500
BATCH = 1_000
RATE = 2_000
"""Events a second that arrive while visibility is measured."""
PROBES_PER_S = 50


def batches(count: int, size: int, seed: int) -> list[bytes]:
    """Batches of views and clicks as JSON lines."""
    draw = np.random.default_rng(seed)
    now = int(time.time() * 1000)
    made = []
    for _ in range(count):
        users, items = draw.integers(0, USERS, size), draw.zipf(1.3, size) % ITEMS
        views, seconds = draw.random(size) < 0.9, draw.gamma(2.0, 20.0, size)
        events = [
            {"kind": "view", "at": now, "user": f"user-{u}", "item": f"item-{i}", "seconds": round(float(s), 2)}
            if view
            else {"kind": "click", "at": now, "user": f"user-{u}", "item": f"item-{i}"}
            for u, i, view, s in zip(users, items, views, seconds, strict=True)
        ]
        made.append(json.dumps(events).encode())
    return made


def events_over_http(quick: bool) -> dict[str, float]:
    """Figures `http_events_per_s` and `visible_p99_ms` (with `visible_p50_ms`)."""
    seconds = 4.0 if quick else 15.0
    with tempfile.TemporaryDirectory() as folder, served(PROJECT, Path(folder), release=False) as service:
        seen = load(service.port, "/events", batches(50, BATCH, 1), seconds, connections=4)
        if seen.failed:
            raise RuntimeError(f"events were refused: {seen.statuses}")
        delays = visibility(service.port, seconds * 2)
    p50, p99 = np.percentile(delays, [50, 99])
    return {
        "http_events_per_s": round(seen.rps * BATCH),
        "visible_p50_ms": round(float(p50), 2),
        "visible_p99_ms": round(float(p99), 2),
    }


def visibility(port: int, seconds: float) -> list[float]:
    """Milliseconds from posting an event to a feature that counts it, one probe after the other, under load."""
    size = 10
    pressed = threading.Thread(
        target=load, args=(port, "/events", batches(200, size, 2), seconds + 3), kwargs={"rate": RATE / size}
    )
    pressed.start()
    time.sleep(2.0)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    delays = []
    begun = time.perf_counter()
    for number in range(int(seconds * PROBES_PER_S)):
        time.sleep(max(0.0, begun + number / PROBES_PER_S - time.perf_counter()))
        delays.append(probe(connection, f"probe-{number}"))
    pressed.join()
    return delays


def probe(connection: http.client.HTTPConnection, user: str) -> float:
    """Milliseconds until one view of a new user is counted."""
    event = {"kind": "click", "at": int(time.time() * 1000), "user": user, "item": "item-1"}
    started = time.perf_counter()
    posted(connection, "/events", event)
    while True:
        known = posted(connection, "/features", {"user": user})
        if known["rows"][0]["features"]["user_click_count_30d"] == 1.0:
            return (time.perf_counter() - started) * 1000


def posted(
    connection: http.client.HTTPConnection, path: str, body: object
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """The answer to one request. Raises RuntimeError where it is refused."""
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = json.load(answer)
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {content}")
    known: dict[str, list[dict[str, dict[str, float]]]] = content
    return known
