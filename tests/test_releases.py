"""A release is whole or absent, verified before it is used, and swapped by one rename."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shortlist.framing.objective import Guardrail
from shortlist.training.releases import Manifest, Registry, Release, ReleaseError


def manifest(position: int = 7, **changed: Any) -> Manifest:
    values: dict[str, Any] = {
        "project": "films",
        "seed": 1,
        "log_position": position,
        "fingerprint": "f" * 64,
        "ranker": "linear",
        "rankers": ("linear",),
        "sources": ("popular",),
        "columns": ("age",),
        "metrics": {"ndcg@10": 0.2, "popularity.ndcg@10": 0.1, "mrr": None},
    }
    return Manifest(**{**values, **changed})


def publish(registry: Registry, position: int = 7, **changed: Any) -> Release:
    with registry.draft() as draft:
        (draft / "rankers" / "linear").mkdir(parents=True)
        (draft / "rankers" / "linear" / "weights.json").write_text(json.dumps({"age": position}))
        (draft / "vectors.npy").write_bytes(bytes(range(256)) * 40)
        return registry.publish(draft, manifest(position, **changed))


def leftovers(registry: Registry) -> list[str]:
    return [path.name for path in registry.directory.iterdir() if path.name.startswith(".draft-")]


def test_a_published_release_comes_back_verified_under_its_version_and_as_latest(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "releases")
    release = publish(registry)
    assert registry.versions() == [release.version]
    assert release.version.startswith("7-")
    fetched = registry.fetch("latest", fingerprint="f" * 64)
    assert fetched.manifest == release.manifest
    assert json.loads((fetched.path("rankers/linear") / "weights.json").read_text()) == {"age": 7}
    assert leftovers(registry) == []


def test_the_same_content_is_the_same_release_wherever_it_is_published(tmp_path: Path) -> None:
    one, two = publish(Registry(tmp_path / "one")), publish(Registry(tmp_path / "two"))
    assert one.version == two.version
    assert (one.directory / "manifest.json").read_bytes() == (two.directory / "manifest.json").read_bytes()
    again = publish(Registry(tmp_path / "one"))
    assert again.directory == one.directory
    assert publish(Registry(tmp_path / "one"), seed=2).version != one.version


def test_a_draft_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with registry.draft() as draft:
        (draft / "half").write_text("x")
        assert leftovers(registry)
    assert leftovers(registry) == []
    assert registry.versions() == []


def test_a_living_draft_of_another_training_is_left_alone(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with registry.draft() as mine, Registry(tmp_path).draft() as other:
        assert mine.is_dir()
        assert other.is_dir()


def damage(release: Release, how: str) -> None:
    weights, vectors = release.path("rankers/linear/weights.json"), release.path("vectors.npy")
    stored = release.directory / "manifest.json"
    if how == "truncated":
        vectors.write_bytes(vectors.read_bytes()[:-1])
    elif how == "one bit":
        content = bytearray(vectors.read_bytes())
        content[100] ^= 1
        vectors.write_bytes(content)
    elif how == "missing":
        weights.unlink()
    elif how == "manifest cut":
        stored.write_bytes(stored.read_bytes()[:50])
    elif how == "manifest edited":
        stored.write_text(stored.read_text().replace("0.2", "0.9"))
    elif how == "manifest of another format":
        stored.write_text('{"format": 99}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", r"vectors\.npy: damaged.*roll back.*train again"),
        ("one bit", r"vectors\.npy: damaged"),
        ("missing", r"weights\.json: the file is missing"),
        ("manifest cut", r"manifest\.json: unreadable"),
        ("manifest edited", r"manifest\.json: the manifest was changed"),
        ("manifest of another format", r"manifest\.json: unreadable.*expected format 1"),
    ],
)
def test_damage_is_refused_by_name_and_publishing_again_repairs_it(tmp_path: Path, how: str, said: str) -> None:
    registry = Registry(tmp_path)
    release = publish(registry)
    damage(release, how)
    with pytest.raises(ReleaseError, match=said):
        registry.fetch(release.version)
    with pytest.raises(ReleaseError, match=said):
        registry.promote(release.version, "ship it")
    assert publish(registry).version == release.version
    assert registry.fetch(release.version).manifest == release.manifest


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    release = publish(registry)
    stored = json.loads((release.directory / "manifest.json").read_text())
    stored["files"] = {"../../secret": "0" * 64}
    lists = {name: tuple(stored[name]) for name in ("rankers", "sources", "columns")}
    target = registry.directory / Manifest(**{**stored, **lists}).version
    release.directory.rename(target)
    (target / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(ReleaseError, match="outside the release"):
        registry.fetch(target.name)


def test_other_features_than_those_trained_with_are_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    publish(registry)
    with pytest.raises(ReleaseError, match="trained with features ffffffffffff, the project now declares eeeeeeeeeeee"):
        registry.fetch("latest", fingerprint="e" * 64)


def test_what_the_release_does_not_hold_is_named(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    release = publish(registry)
    with pytest.raises(ReleaseError, match="no 'rankers/trees'"):
        release.path("rankers/trees")
    with pytest.raises(ReleaseError, match=f"no release 'nothing'; published: {release.version}"):
        registry.fetch("nothing")
    with pytest.raises(ReleaseError, match="there is no champion release; run `shortlist train`"):
        Registry(tmp_path / "empty").fetch("champion")


def test_promotion_and_rollback_move_the_pointer_and_remember_why(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second, third = (publish(registry, position).version for position in (1, 2, 3))
    for version in (first, second, third):
        registry.promote(version, f"try {version}")
    assert (registry.pointer().champion, registry.pointer().previous) == (third, second)
    registry.rollback("clicks fell")
    assert (registry.pointer().champion, registry.pointer().previous) == (second, first)
    registry.rollback("and fell")
    assert (registry.pointer().champion, registry.pointer().previous) == (first, None)
    with pytest.raises(ReleaseError, match="no previous release"):
        registry.rollback("once more")
    history = registry.pointer().history
    assert [entry.action for entry in history] == ["promote"] * 3 + ["rollback"] * 2
    assert history[-1].reason == "and fell"
    assert history[-1].replaced == second
    assert registry.fetch("champion").version == first


def test_a_release_below_popularity_or_its_guardrails_needs_force_which_is_recorded(tmp_path: Path) -> None:
    registry = Registry(tmp_path, [Guardrail("coverage", at_least=0.5)])
    poor = publish(registry, metrics={"ndcg@10": 0.05, "popularity.ndcg@10": 0.1, "coverage": 0.4})
    with pytest.raises(
        ReleaseError, match=r"guardrail coverage: 0\.4000, wanted at least 0\.5; ndcg@10 is 0\.0500, below"
    ):
        registry.promote(poor.version, "hope")
    assert registry.pointer().champion is None
    forced = registry.promote(poor.version, "hope", force=True)
    assert len(forced.history[-1].failed) == 2
    unmeasured = publish(registry, metrics={"ndcg@10": 0.2})
    with pytest.raises(ReleaseError, match="guardrail coverage: not measured"):
        registry.promote(unmeasured.version, "hope")


def test_old_releases_go_but_never_the_champion_nor_the_one_before(tmp_path: Path) -> None:
    registry = Registry(tmp_path, keep=2)
    made = [publish(registry, position).version for position in (1, 2)]
    for version in made:
        registry.promote(version, "first ones")
    for position in range(3, 8):
        time.sleep(0.002)  # the time of making orders them, to the millisecond
        made.append(publish(registry, position).version)
    assert set(registry.versions()) == {made[0], made[1], made[-1], made[-2]}


def test_a_damaged_pointer_is_said_plainly(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    version = publish(registry).version
    registry.promote(version, "good")
    (tmp_path / "champion.json").write_text('{"champion": "x"')
    with pytest.raises(ReleaseError, match=f"not a champion pointer.*promote one of: {version}"):
        registry.fetch("champion")


PUBLISH_FOREVER = """
import sys
from pathlib import Path
from tests.test_releases import manifest
from shortlist.training.releases import Registry
registry = Registry(sys.argv[1], keep=1000)
print("started", flush=True)
for position in range(int(sys.argv[2]), 10**9):
    with registry.draft() as draft:
        for part in range(8):
            (draft / f"part{part}").write_bytes(position.to_bytes(8, "little") * 100_000)
        registry.promote(registry.publish(draft, manifest(position)).version, "next")
"""


def test_kill_9_while_publishing_leaves_nothing_or_a_whole_release(tmp_path: Path) -> None:
    registry = Registry(tmp_path, keep=1000)
    torn = 0
    for attempt in range(12):
        command = [sys.executable, "-c", PUBLISH_FOREVER, str(tmp_path), str(attempt * 1000)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 + 0.009 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        torn += bool(leftovers(registry))
        for version in registry.versions():
            registry.fetch(version)
        if registry.pointer().champion:
            registry.fetch("champion")
    assert torn, "no attempt was killed inside a draft: the test tests nothing"
    publish(registry)
    assert leftovers(registry) == []


def test_a_full_disk_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with registry.draft() as draft:
        (draft / "file").write_text("x")
        shutil.rmtree(draft)
        draft.write_text("no directory any more: the manifest cannot be written")
        with pytest.raises(ReleaseError, match=r"could not publish.*nothing was published"):
            registry.publish(draft, manifest())
        draft.unlink()
    assert registry.versions() == []
