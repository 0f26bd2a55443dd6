"""The command line, on a real project: what it prints, what it leaves behind, and its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest

from shortlist.cli import commands, main
from shortlist.cli.explaining import done


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter project, as `init` makes it, with a release."""
    folder = tmp_path_factory.mktemp("projects") / "shelf"
    assert main(["init", str(folder)]) == 0
    assert main(["validate", "-p", str(folder)]) == 0
    assert main(["train", "-p", str(folder)]) == 0
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The starter project without a release."""
    assert main(["init", str(tmp_path / "fresh")]) == 0
    return tmp_path / "fresh"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def walk(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += walk(command, (*prefix, name)) if isinstance(command, click.Group) else [(*prefix, name)]
    return found


@pytest.mark.parametrize("path", walk(commands), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    text = printed(capsys)
    assert text.startswith(f"Usage: shortlist {' '.join(path)}")
    assert len(text.splitlines()[2].strip()) > 20


def test_a_file_that_init_wrote_is_a_whole_project(fresh: Path) -> None:
    names = {path.name for path in fresh.iterdir()}
    assert {"project.py", "shortlist.toml", "README.md", "events.jsonl", "data"} == names
    last = max(json.loads(line)["at"] for line in (fresh / "events.jsonl").read_text("utf-8").splitlines())
    assert 0 < time.time() * 1000 - last < 2 * 3_600_000


def test_init_does_not_write_over_anything(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(fresh)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_validate_finds_every_mistake(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fresh / "project.py"
    file.write_text(file.read_text("utf-8").replace('share("book.author")', 'share("book.autor")').replace("1.0", "-1"))
    (fresh / "shortlist.toml").write_text("prot = 1\n")
    assert main(["validate", "-p", str(fresh)]) == 1
    said = capsys.readouterr().err
    assert "project.py:" in said
    assert "author" in said
    assert "above 0" in said
    assert main(["validate", "-p", str(fresh), "--json"]) == 1
    document = json.loads(printed(capsys))
    assert not document["ok"]
    assert {"place", "found", "expected"} == set(document["problems"][0])


def test_settings_are_validated_too(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "shortlist.toml").write_text("prot = 1\n")
    assert main(["validate", "-p", str(fresh)]) == 1
    assert "did you mean 'port'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command"),
        (["train", "--sead", "1"], "--seed"),
        (["train", "-p", "/nowhere/at/all"], "does not exist"),
        (["serve", "--port", "70000"], "70000"),
        (["ingest"], "Missing argument"),
        (["recommend", "-k", "0", "ada"], "0"),
        (["recommend"], "name a USER"),
        (["tune", "--trials", "0"], "0"),
        (["recommend", "--all"], "--out DIR"),
        (["recommend", "ada", "--out", "slates"], "--all"),
        (["recommend", "ada", "--all", "--out", "slates"], "USER"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_where_there_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 2
    assert "shortlist init" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_without_a_traceback(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["promote"], ["rollback"], ["evaluate"], ["recommend", "ada"]):
        assert main([*command, "-p", str(fresh)]) == 1
        assert "error: " in capsys.readouterr().err
    (fresh / "data" / "log.db").write_bytes(b"this is no database at all" * 100)
    assert main(["log", "info", "-p", str(fresh)]) == 1
    assert "log.db" in capsys.readouterr().err


def test_ingest_takes_files_once_and_says_what_it_refused(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "userId,movieId,when,zip,rating\nada,dune,2026-01-02T03:04:05Z,1,4\nben,solaris,2026-01-02,2,four\n"
    (fresh / "ratings.csv").write_text(rows)
    mapped = [
        part for pair in ("reader=userId", "book=movieId", "at=when", "stars=rating") for part in ("--column", pair)
    ]
    command = ["ingest", str(fresh / "ratings.csv"), "-p", str(fresh), "--kind", "finish", *mapped]
    assert main(command) == 1
    done = capsys.readouterr()
    assert "ratings.csv:3: " in done.err
    assert "four" in done.err
    assert main([*command, "--json"]) == 0
    (document,) = json.loads(printed(capsys))
    assert (document["accepted"], document["resumed_at"]) == (0, 1)
    assert main(["log", "tail", "-n", "1", "-p", str(fresh)]) == 0
    event = json.loads(printed(capsys))
    assert {"kind": "finish", "reader": "ada", "book": "dune", "stars": 4}.items() <= event.items()
    assert event["at"] == event["received"] == 1_767_323_045_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--column", "book"], "NAME=COLUMN"),
        (["--column", "book=moveId"], "did you mean 'movieId'?"),
        (["--column", "bok=movieId"], "did you mean 'book'?"),
        ([], "no kind of event has a key or field"),
    ],
)
def test_a_wrong_mapping_is_named(
    fresh: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (fresh / "ratings.csv").write_text("reader,movieId,at\nada,dune,1\n")
    assert main(["ingest", str(fresh / "ratings.csv"), "-p", str(fresh), "--kind", "open", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err


def test_the_log_is_described_and_verified(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "info", "-p", str(shelf)]) == 0
    assert "517 events about 26 books, 24 readers" in printed(capsys)
    assert main(["log", "info", "-p", str(shelf), "--json"]) == 0
    assert json.loads(printed(capsys))["labels"]["gains"] == {"1.0": 197}
    assert main(["log", "verify", "-p", str(shelf), "--json"]) == 0
    assert json.loads(printed(capsys))["events"] == 517


def test_a_damaged_log_fails_verification(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fresh / "data" / "log.db"
    content = bytearray(file.read_bytes())
    spot = content.find(b"ARROW1")
    spot = spot if spot > 0 else content.find(b"colour-magic")
    assert spot > 0
    content[spot + 400] ^= 0xFF
    file.write_bytes(bytes(content))
    assert main(["log", "verify", "-p", str(fresh)]) == 1
    assert "error: " in capsys.readouterr().err


def test_the_report_of_a_release(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "-p", str(shelf)]) == 0
    text = printed(capsys)
    for word in ("popularity", "logistic regression", "lambdamart", "two stage", "held-out positives", "not retrieved"):
        assert word in text
    assert main(["evaluate", "-p", str(shelf), "--json"]) == 0
    document = json.loads(printed(capsys))
    assert document["methods"]["popularity"]["ndcg@10"].keys() == {"value", "low", "high"}


def test_the_report_weighs_everything_and_recommends(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((shelf / "data" / "releases").iterdir())
    assert main(["report", "-p", str(shelf)]) == 0
    text = printed(capsys)
    for said in (
        "ms per 500",
        "trained in",
        "What can be shown of why",
        "Recommendation",
        "To retrieve with one source: ",
        "two tower",
    ):
        assert said in text
    assert main(["report", "-p", str(shelf), "--json"]) == 0
    document = json.loads(printed(capsys))
    methods = {method["name"]: method for method in document["methods"]}
    assert set(methods) == {"popularity", "two_tower", "lambdamart", "logistic_regression", "ensemble", "two_stage"}
    assert methods["two_tower"]["bytes"] > 0
    assert {source["source"] for source in document["sources"]} == {"popularity", "two_tower"}
    assert document["recommendation"]
    assert sorted((shelf / "data" / "releases").iterdir()) == before  # nothing is published


def test_tuning_resumes_and_prints_lines(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tune", "popular", "lambdamart", "--trials", "2", "-p", str(shelf), "--json"]
    assert main(command) == 0
    first = json.loads(printed(capsys))
    assert [(part["part"], part["trials"]) for part in first["parts"]] == [("popular", 2), ("lambdamart", 2)]
    assert first["is_finished"]
    assert main(command) == 0
    second = json.loads(printed(capsys))
    assert second["parts"] == first["parts"]
    assert (shelf / "data" / "tuning.db").is_file()
    assert main(command[:-1]) == 0
    done = capsys.readouterr()
    assert "goes on" in done.err
    assert "judged by" in done.out
    assert main(["tune", "lambdamrt", "-p", str(shelf)]) == 1
    assert "'lambdamrt' cannot be tuned" in capsys.readouterr().err


def test_training_by_force_is_recorded(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shortlist.training.evaluation.Evaluation.ndcg", lambda _, method: float(method != "two_stage"))
    assert main(["train", "-p", str(fresh), "--json"]) == 0
    modest = json.loads(printed(capsys))
    assert modest["ranker"] == ""
    assert main(["train", "--force", "-p", str(fresh)]) == 0
    assert "it serves all the same, by force" in capsys.readouterr().err


def test_promote_and_roll_back(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases", "-p", str(shelf), "--json"]) == 0
    first = json.loads(printed(capsys))[0]["version"]
    assert main(["train", "-p", str(shelf), "--seed", "1", "--json"]) == 0
    second = json.loads(printed(capsys))
    assert second["champion"] == first
    assert main(["promote", second["version"], "--force", "-p", str(shelf), "--json"]) == 0
    assert json.loads(printed(capsys)) == {"champion": second["version"], "previous": first}
    assert main(["rollback", "-p", str(shelf), "--reason", "a test", "--json"]) == 0
    assert json.loads(printed(capsys))["champion"] == first
    assert main(["releases", "-p", str(shelf)]) == 0
    assert "champion" in printed(capsys)


def test_recommend_answers_for_anybody(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for user in ("ada", "nobody-ever", "日本" * 200):
        assert main(["recommend", user, "-k", "3", "-p", str(shelf), "--json"]) == 0
        answers.append([shown["item"] for shown in json.loads(printed(capsys))["items"]])
    assert [len(answer) for answer in answers] == [3, 3, 3]
    assert answers[0] != answers[1]
    assert main(["recommend", "ada", "-k", "100", "--explain", "-p", str(shelf)]) == 0
    assert "popular_rank" in printed(capsys)


def test_an_explanation_tells_people_what_filters_and_rules_did(
    shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    declared = shelf / "project.py"
    plain = declared.read_text()
    rules = 'Pin(items=["dune"], at=2), Boost(1.3, items=["emma", "dune"]), Cap("author", 1), Explore(2)'
    ruled = plain.replace("    rankers=[", f"    slate=[{rules}],\n    rankers=[")
    try:
        declared.write_text(ruled.replace("import (", "import (\n    Boost, Cap, Explore, Pin,", 1))
        assert main(["recommend", "ada", "-k", "5", "--explain", "-p", str(shelf)]) == 0
    finally:
        declared.write_text(plain)
    said = [" ".join(line.split()) for line in printed(capsys).splitlines()]
    assert said[0].startswith("item title why p(")
    assert any(line.startswith("2 dune Dune") for line in said)
    steps = said[said.index("step what it did") :]
    assert any(line.startswith("sources proposed: popular 16, two_tower 16") for line in steps)
    assert any(line.startswith("filters dropped: available 0,") for line in steps)
    assert "pin_items at place 2" in steps
    assert any(re.fullmatch(r"boost_items [12] candidates? boosted", line) for line in steps)
    assert any(line.startswith("cap_author changed ") for line in steps)
    (drawn,) = (line for line in steps if line.startswith("explore drawn: place 4 (probability 0."))
    assert re.search(r"place 5 \(probability 0\.\d+\), among \d+ candidates$", drawn)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"unused": "no vectors"}, "not used: no vectors"),
        ({"boosted": 1}, "1 candidate boosted"),
        ({"places": [2, 3]}, "at place 2, 3"),
        ({"places": []}, "at no place"),
        ({"places": [], "among": 0}, "nothing to draw"),
        ({"places": [2], "among": 1}, "drawn: place 2 (probability 0.25), among 1 candidate"),
        ({"moved": 0, "waived": 2}, "changed nothing; could not hold at 2 places"),
        ({"moved": 1, "waived": 0, "short": {"own": 0.031}}, "changed 1 place; own lacks 3.1% of the exposure"),
    ],
    ids=str,
)
def test_what_a_rule_did_in_words(told: dict[str, Any], words: str) -> None:
    assert "; ".join(done(told, [1.0, 0.25])) == words


def test_recommend_all_writes_everybody_and_goes_on(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recommend", "--all", "--out", str(tmp_path / "slates"), "-k", "3", "-p", str(shelf)]
    assert main([*command, "--json"]) == 0
    document = json.loads(printed(capsys))
    assert (document["computed"], document["parts"], document["batch"]["users"]) == (24, 1, 24)
    rows = pq.read_table(tmp_path / "slates").to_pylist()
    assert main(["recommend", "ada", "-k", "3", "-p", str(shelf), "--json"]) == 0
    one = [shown["item"] for shown in json.loads(printed(capsys))["items"]]
    assert one == next(row["items"] for row in rows if row["user"] == "ada")
    assert main(command) == 0
    assert "1 of 1 parts were there already" in capsys.readouterr().err
    assert main([*command, "--format", "jsonl"]) == 0
    assert "begins anew: format was parquet, is jsonl" in capsys.readouterr().err
    declared = shelf / "project.py"
    plain = declared.read_text()
    ruled = plain.replace("    rankers=[", '    slate=[Cap("author", 2)],\n    rankers=[')
    ruled = ruled.replace("import (", "import (\n    Cap,", 1)
    try:
        declared.write_text(ruled)
        assert main([*command, "--format", "jsonl"]) == 0
    finally:
        declared.write_text(plain)
    assert "begins anew: rules was , is Cap(attribute='author', at_most=2)" in capsys.readouterr().err
    assert main(["recommend", "--all", "--out", str(shelf), "-p", str(shelf)]) == 1
    assert "name a new folder" in capsys.readouterr().err


def test_a_training_set_is_written(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", str(tmp_path / "rows.parquet"), "-p", str(shelf), "--json"]) == 0
    document = json.loads(printed(capsys))
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == document["rows"] > 0
    assert {"part", "gain", "request", "book_stars", "two_tower_score"} <= set(table.column_names)


def test_an_audit_without_vectors_proves_nothing(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "-p", str(shelf), "--json"]) == 1
    assert json.loads(printed(capsys))["vectors"] == 0


def test_a_turn_promotes_only_what_passes(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["turn", "-p", str(shelf), "--seed", "2", "--json"]) == 0
    document = json.loads(printed(capsys))
    assert document["champion"] == document["version"]
    file = shelf / "project.py"
    sound = file.read_text("utf-8")
    guarded = sound.replace(
        'proxies={"finish": 1.0}', 'proxies={"finish": 1.0}, guardrails=(Guardrail("ndcg@10", at_least=0.999),)'
    )
    try:
        file.write_text(guarded.replace("    EventType,\n", "    EventType,\n    Guardrail,\n"), "utf-8")
        assert main(["turn", "-p", str(shelf), "--seed", "3", "--json"]) == 1
        refused = json.loads(printed(capsys))
        assert refused["champion"] == document["version"]
        assert "ndcg@10" in refused["failed"][0]
        assert main(["promote", refused["version"], "-p", str(shelf)]) == 1
        assert "not promoted" in capsys.readouterr().err
    finally:
        file.write_text(sound, "utf-8")


def test_the_reader_of_our_output_may_leave(shelf: Path) -> None:
    command = f"{sys.executable} -m shortlist log tail -n 500 -p {shelf} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)
    assert done.stderr == ""
