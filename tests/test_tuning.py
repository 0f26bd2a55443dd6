"""Tuning: trials that resume, that never see the test slice, and that find what is planted to be found."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist.events.log import MemoryLog
from shortlist.ranking.specs import LambdaMART, LogisticRegression
from shortlist.retrieval.specs import Popular, TwoTower
from shortlist.training.comparing.spaces import SPACES, Between, OneOf, space_of, written
from shortlist.training.comparing.trials import RankerPart, SourcePart
from shortlist.training.comparing.tuning import LOCK, Best, Budget, Tuned, is_better, tune
from shortlist.training.dataset import TrainingError
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.fitting import fit_source
from tests.test_training_train import HOUR, TOWERS, history, log_of, project, taste_events, watches

TRENDS = project(sources=[Popular(half_life="365d", quota=40)], rankers=[LambdaMART(trees=5), LogisticRegression()])
FOREVER = 3_600.0


def trend_events(count: int = 1_500, films: int = 60, users: int = 40) -> list[dict[str, Any]]:
    """Everybody watches what is new: what was popular a week ago is of no use."""
    rng = np.random.default_rng(8)
    events = [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(films)]
    for turn in range(count):
        newest = int(turn / count * (films - 8))
        film = newest + int(8 * rng.random())
        events.append({"kind": "watch", "at": turn * HOUR, "user": f"u{rng.integers(users)}", "film": f"f{film}"})
    return events


def run(
    log: MemoryLog, place: Path, trials: int, *, whole: Any = TRENDS, seconds: float = FOREVER, **more: Any
) -> Tuned:
    return tune(whole, log, place / "tuning.db", Budget(trials, seconds), more.pop("seed", 0), lambda *_: None, **more)


def part(tuned: Tuned, name: str) -> Best:
    return next(best for best in tuned.parts if best.part == name)


@pytest.fixture(scope="module")
def trends() -> MemoryLog:
    return log_of(trend_events())


def test_what_is_planted_is_found_and_written_for_the_project_file(trends: MemoryLog, tmp_path: Path) -> None:
    tuned = run(trends, tmp_path, 12, names=["popular"])
    best = part(tuned, "popular")
    assert best.settings["half_life"] in ("3d", "7d")
    assert best.best is not None
    assert best.declared is not None
    assert best.best > best.declared + 0.02
    assert best.line == f"Popular(quota=40, half_life={best.settings['half_life']!r})"
    assert tuned.comparison is not None
    assert tuned.looks == 1
    json.dumps(tuned.to_dict(), allow_nan=False)


class Counted:
    """Counts how often a part is judged, and can be stopped in the middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.judged: list[str] = []
        for kind in (SourcePart, RankerPart):
            monkeypatch.setattr(kind, "judge", self.wrap(kind.judge, stop_after))

    def wrap(self, judge: Any, stop_after: int | None) -> Any:
        def counting(this: Any, spec: Any) -> float:
            if len(self.judged) == stop_after:
                raise KeyboardInterrupt
            self.judged.append(spec.name)
            value: float = judge(this, spec)
            return value

        return counting


def test_a_run_that_was_stopped_goes_on(trends: MemoryLog, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Counted(patch, stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            run(trends, tmp_path, 4)
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        tuned = run(trends, tmp_path, 4)
    assert [(best.part, best.trials) for best in tuned.parts] == [("popular", 4), ("lambdamart", 4)]
    assert len(counted.judged) <= 10 - 5  # declared once and four trials of each, less what was done before
    assert tuned.is_finished
    assert "goes on" in tuned.note
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        again = run(trends, tmp_path, 4)
        assert counted.judged == []
    assert again.parts == tuned.parts
    assert again.comparison == tuned.comparison
    assert again.looks == tuned.looks  # what was compared is read, not measured again


def test_one_run_at_a_time(trends: MemoryLog, tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match=r"another run tunes this project .*tuning\.db; wait for it"):
            run(trends, tmp_path, 4)
    assert not (tmp_path / "tuning.db").exists()


def test_when_the_time_is_up_the_test_slice_is_left_alone(trends: MemoryLog, tmp_path: Path) -> None:
    tuned = run(trends, tmp_path, 4, seconds=0.0)
    assert not tuned.is_finished
    assert tuned.comparison is None
    assert [best.trials for best in tuned.parts] == [0, 0]
    assert [best.best for best in tuned.parts] == [None, None]


def test_trials_see_nothing_of_the_test_slice(tmp_path: Path) -> None:
    events = trend_events(600)
    cut = int(len(events) * 0.85)  # behind the choosing slice, in the test part
    others = [*events[:cut], *({**event, "film": "f1"} for event in events[cut:])]
    values = []
    for number, given in enumerate((events, others)):
        place = tmp_path / str(number)
        tuned = run(log_of(given), place, 3)
        values.append([(best.declared, best.best, best.settings) for best in tuned.parts])
    assert values[0] == values[1]


def test_the_log_may_grow_between_two_runs(tmp_path: Path) -> None:
    log = log_of(trend_events(500))
    first = run(log, tmp_path, 2, names=["popular"])
    at = 501 * HOUR
    log.append([{"kind": "watch", "at": at, "user": "u1", "film": "f3"}], received=at)
    second = run(log, tmp_path, 3, names=["popular"])
    assert second.log_position == first.log_position
    assert part(second, "popular").trials == 3
    assert "--anew begins again" in second.note
    third = run(log, tmp_path, 2, names=["popular"], anew=True)
    assert third.log_position == log.position > first.log_position
    assert "began anew" in third.note
    assert part(third, "popular").trials == 2
    assert run(log, tmp_path, 2, names=["popular"], seed=7).note.startswith("began anew: the declarations")


def test_towers_and_trees_are_tuned_too(tmp_path: Path) -> None:
    whole = project(sources=[replace(TOWERS, epochs=1)], rankers=[LambdaMART(trees=5)])
    tuned = run(log_of(taste_events(300)), tmp_path, 2, whole=whole)
    assert [(best.part, best.metric, best.trials) for best in tuned.parts] == [
        ("two_tower", "ndcg@100", 2),
        ("lambdamart", "ndcg@10", 2),
    ]
    assert all(best.best is not None and best.best >= (best.declared or 0) for best in tuned.parts)


def test_too_little_to_judge_by_is_said(tmp_path: Path) -> None:
    tuned = run(log_of(watches(("u", "f"))), tmp_path, 2)
    assert all(best.problem for best in tuned.parts)
    assert "choosing slice" in part(tuned, "popular").problem
    assert tuned.comparison is None


def test_what_cannot_be_tuned_is_refused_by_name(trends: MemoryLog, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'logistic_regression' cannot be tuned; .* popular, lambdamart"):
        run(trends, tmp_path, 1, names=["logistic_regression"])
    with pytest.raises(TrainingError, match="nothing can be tuned"):
        run(trends, tmp_path, 1, whole=project(sources=[], rankers=[LogisticRegression()]))
    with pytest.raises(TrainingError, match="the log of project 'films' is empty"):
        run(log_of([]), tmp_path, 1)


def test_a_trial_that_cannot_be_fitted_is_counted_and_passed_over(
    trends: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(spec: Popular, *rest: Any) -> Any:
        if spec.half_life != "365d":
            raise NothingToLearnError("not today")
        return fit_source(spec, *rest)

    monkeypatch.setattr("shortlist.training.comparing.trials.fit_source", picky)
    best = part(run(trends, tmp_path, 4, names=["popular"]), "popular")
    assert best.trials == 4
    assert best.settings == {}
    assert best.best == best.declared


def test_what_may_be_luck_is_not_better() -> None:
    noise = np.random.default_rng(2).standard_normal(100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # one standard error is a tenth
    declared = np.linspace(0, 1, 100)
    assert is_better(declared + 0.17 + noise, declared)
    assert not is_better(declared + 0.16 + noise, declared)
    assert not is_better(declared, declared)
    assert not is_better(np.array([1.0]), np.array([0.0]))


def test_every_space_names_settings_that_exist_and_ranges_that_rise() -> None:
    for kind, space in SPACES.items():
        assert set(space) <= {field.name for field in fields(kind)}
        for values in space.values():
            if isinstance(values, Between):
                assert 0 < values.low < values.high
            else:
                assert isinstance(values, OneOf)
                assert len(values.values) == len(set(map(repr, values.values))) > 1
    assert space_of(LambdaMART()) == SPACES[LambdaMART.__mro__[1]]
    assert space_of(LogisticRegression()) == {}


@dataclass(frozen=True)
class Odd:
    feature: Any
    sizes: Sequence[int] = (1, 2)
    name: str = "odd"


def test_settings_are_written_as_python() -> None:
    assert written(LambdaMART(trees=9), {"leaves": 7}) == "LambdaMART(trees=9, leaves=7)"
    assert written(Popular(half_life="7d"), {"half_life": "3d"}) == "Popular(half_life='3d')"
    assert eval(written(Odd(None), {"sizes": (3,)})) == Odd(None, (3,))
    towers = TwoTower(history, dimensions=32)
    assert written(towers, {"temperature": 0.1, "dimensions": 64}) == (
        "# in TwoTower(...), which is called 'two_tower':\ntemperature=0.1, dimensions=64,"
    )
