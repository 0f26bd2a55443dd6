"""Progress: each step is given the time in which it ran, and no other."""

from __future__ import annotations

import io
import sys
import time

import pytest

from shortlist.terminal import Clock, progress


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    made = Hands()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def test_a_step_is_given_the_time_in_which_it_ran(hands: Hands, capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for step, done, passes in [
            ("fit popular", 1.0, 60.0),  # takes no time; what follows is nobody's
            ("fit towers", 0.1, 2.0),
            ("index", 0.0, 3.0),
            ("index", 1.0, 7.0),
            ("fit towers", 0.5, 4.0),
            ("fit towers", 1.0, 50.0),
            ("fit towers", 1.0, 0.0),
            ("fit popular", 1.0, 1.0),
            ("index", 0.5, 8.0),
            ("index", 1.0, 0.0),
        ]:
            report(step, done)
            hands.now += passes
    assert capsys.readouterr().err.splitlines() == ["index: 3.0 s", "fit towers: 6.0 s", "index: 8.0 s"]


def test_nothing_is_said_where_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as report:
        report("step", 0.0)
        report("step", 1.0)
    assert capsys.readouterr().err == ""


def test_bars_stand_still_while_another_step_runs(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as report:
        report("first", 0.5)
        hands.now += 65.0
        report("second", 0.0)
        hands.now += 3600.0
        report("second", 1.0)
    last = said.getvalue().rsplit("first", 1)[1]
    assert "0:01:05" in last
    assert "1:00:00" in last
    assert "1:01:05" not in last


def test_a_clock_says_how_long_a_running_step_takes(hands: Hands) -> None:
    clock = Clock()
    assert not clock.tell("step", 0.0)
    hands.now += 5.0
    assert clock.seconds("step") == 5.0
    assert clock.tell("step", 1.0)
    hands.now += 5.0
    assert clock.seconds("step") == 5.0
