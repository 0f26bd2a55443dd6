"""The demo, as somebody meets it: on a small MovieLens, with the commands that it prints, and without internet."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shortlist import sample
from shortlist.child import Child, ChildError, available
from shortlist.cli import main
from shortlist.demo import MARK, DemoError, prepare
from shortlist.events.log import MemoryLog
from shortlist.movielens import DAY_MS
from shortlist.project import load_project
from shortlist.sample import Films, Simulated, choose, fetch

FILMS, USERS = 90, 60


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release in which users watch what has the parity of their own number, mostly."""
    folder = tmp_path_factory.mktemp("ml")
    rng = np.random.default_rng(3)
    films = (f"{n},Film {n} ({1980 + n % 20}),{('Drama', 'Comedy')[n % 2]}\n" for n in range(FILMS))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(films))
    lines = []
    for user in range(USERS):
        for film in rng.permutation(FILMS)[:40]:
            liked = film % 2 == user % 2
            if liked or rng.random() < 0.3:
                at = 1_500_000_000 + int(rng.integers(0, 40 * 86_400))
                lines.append((at, f"{user},{film},{4.5 if liked else 2.0},{at}\n"))
    text = "".join(line for _, line in sorted(lines))
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + text)
    return folder


def test_one_answer_for_programs(movielens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--data", str(movielens), "--dir", str(tmp_path / "demo"), "--port", "0", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["items"]) == 10
    assert told["rss_mb"] > 50
    assert set(told["steps"]) == {"Data", "Ingest", "Train", "Serve"}


def test_the_demo_replaces_its_own_folder_and_no_other(tmp_path: Path) -> None:
    prepare(tmp_path / "demo")
    (tmp_path / "demo" / "old").write_text("from an earlier demo")
    prepare(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [MARK]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(DemoError, match="--dir"):
        prepare(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the demo's reader does")
def test_the_printed_commands_work_and_the_last_one_changes_the_answer(movielens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shortlist", "demo", "--data", str(movielens), "--dir", str(tmp_path / "demo")]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        text = "".join(lines)
        assert "popularity" in text, text + process.stderr.read()
        assert re.search(r"Film \d+ \(\d{4}\)", text)
        curls = [line.strip() for line in lines if line.strip().startswith("curl")]
        assert len(curls) == 3
        before, why = (json.loads(run(curl)) for curl in curls[:2])
        assert why["explanation"]["items"]
        posted, after = (json.loads(part) for part in re.split(r"(?<=})(?={)", run(curls[2])))
        assert posted["accepted"] == 1
        first = before["items"][0]["item"]
        assert first not in [shown["item"] for shown in after["items"]]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0


def run(curl: str) -> str:
    return subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True).stdout


def test_a_release_fills_a_log_and_ends_today(movielens: Path, tmp_path: Path) -> None:
    films = Films(movielens)
    films.write_project(tmp_path)
    log = MemoryLog(load_project(tmp_path).schemas)
    shares: list[float] = []
    films.fill(log, shares.append)
    assert log.position == len(films.release)
    assert shares[-1] == 1.0
    last = max(int(batch.at[-1]) for batch in log.scan())
    assert 0 <= now() - last <= DAY_MS


def test_the_simulated_world_fills_a_log(tmp_path: Path) -> None:
    world = Simulated(users=40, items=60, events=4_000, days=20)
    world.write_project(tmp_path)
    project = load_project(tmp_path)
    log = MemoryLog(project.schemas)
    world.fill(log, lambda share: None)  # noqa: ARG005
    kinds = {kind for batch in log.scan() for kind in np.array(batch.kinds)[np.unique(batch.kind_codes)].tolist()}
    assert {"impression", "click", "watch", "user", "item"} <= kinds
    assert all(int(batch.at[-1]) <= now() for batch in log.scan())


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on a folder: its address and the folder."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_what_the_publisher_sends_is_kept_once_it_is_sound(
    publisher: tuple[str, Path], movielens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = publisher
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "PUBLISHER", f"{url}/ml.zip")
    said: list[str] = []
    assert isinstance(choose(None, said.append), Simulated)
    assert "the simulated world takes its place" in said[0]
    assert "--data" in said[1]
    (folder / "ml.zip").write_bytes(b"<html>sorry</html>")
    with pytest.raises(ValueError, match="no MovieLens release"):
        fetch(f"{url}/ml.zip", tmp_path / "cache" / "x.zip")
    with zipfile.ZipFile(folder / "ml.zip", "w") as archive:
        for file in movielens.iterdir():
            archive.write(file, f"ml/{file.name}")
    fetched = choose(None, said.append)
    assert isinstance(fetched, Films)
    assert fetched.release.films.num_rows == FILMS
    (folder / "ml.zip").unlink()
    assert choose(None, said.append) == fetched
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text("1 / 0")
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        Child(tmp_path, 0)


def test_a_taken_port_becomes_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert available(port) == 0
    assert available(port) == port
