"""A request feature is what it does: a change of anything of the project's own that it uses makes it another one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from shortlist.events.schema import Entity
from shortlist.features.program import FeatureSet

PROJECT = """
import functools
import math
import numpy as np
import helpers_of_ages
from helpers_of_ages import younger
from shortlist.features.definitions import request_feature

LIMIT = 18
NAMES = {"a", "b", "c"}
STEPS = np.array([0.0, 10.0, 20.0])
UNUSED = 1

@functools.cache
def half(age):
    return third(age) * 1.5

def third(age):
    return age / 3

class Bounded:
    GREATEST = 100

    @property
    def most(self):
        return self.GREATEST

    def bounded(self, age):
        return min(age, self.most)

class Scale(Bounded):
    def of(self, age):
        return self.bounded(age) * FACTOR

FACTOR = 2.0

def made(factor):
    def old(user_age, now):
        grown = np.where(user_age < LIMIT, younger(user_age), half(user_age) * factor)
        return grown + len(NAMES) + math.pi + np.searchsorted(STEPS, now)
    return request_feature(old)

old = made(3)

@request_feature
def scaled(user_age, now):
    return [Scale().of(age) for age in helpers_of_ages.older(user_age)]

@request_feature
def plain(user_age, now):
    return user_age + 1
"""
HELPERS = """
YEARS = 5

def younger(age, years=YEARS):
    return age - years

def older(age):
    return age + 1
"""


def fingerprints(folder: Path, project: str = PROJECT, helpers: str = HELPERS) -> dict[str, str]:
    """Of each feature of a project that is loaded anew from its files."""
    folder.mkdir()
    (folder / "helpers_of_ages.py").write_text(helpers)
    (folder / "ages.py").write_text(project)
    sys.modules.pop("helpers_of_ages", None)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("ages", folder / "ages.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("helpers_of_ages", None)
    who = Entity("user", age=int)
    return {name: FeatureSet([getattr(module, name)], (who,)).fingerprint for name in ("old", "scaled", "plain")}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("LIMIT = 18", "LIMIT = 21", {"old"}),
        ('{"a", "b", "c"}', '{"a", "b"}', {"old"}),
        ('{"a", "b", "c"}', '{"c", "b", "a"}', set()),
        ("10.0, 20.0", "10.0, 20.5", {"old"}),
        ("UNUSED = 1", "UNUSED = 2", set()),
        ("* 1.5", "* 1.25", {"old"}),
        ("age / 3", "age / 4", {"old"}),
        ("made(3)", "made(4)", {"old"}),
        ("bounded(age) * F", "bounded(age) / F", {"scaled"}),
        ("FACTOR = 2.0", "FACTOR = 2.5", {"scaled"}),
        ("user_age + 1", "user_age + 2", {"plain"}),
        ("YEARS = 5", "YEARS = 6", {"old"}),
        ("return age + 1", "return age + 2", {"scaled"}),
        ("GREATEST = 100", "GREATEST = 90", {"scaled"}),
        ("min(age, self.most)", "min(self.most, age)", {"scaled"}),
    ],
)
def test_whatever_a_feature_uses_belongs_to_it(tmp_path: Path, before: str, after: str, changed: set[str]) -> None:
    was = fingerprints(tmp_path / "was")
    now = fingerprints(tmp_path / "now", *(text.replace(before, after) for text in (PROJECT, HELPERS)))
    assert {name for name in was if was[name] != now[name]} == changed


AT_A_PROMPT = """
from shortlist.features.used_code import used_code
def made(now, age=3):
    return now
print(used_code(made))
"""


def test_what_is_made_at_a_prompt_is_told_by_its_parameters() -> None:
    said = subprocess.run([sys.executable, "-c", AT_A_PROMPT], capture_output=True, text=True, check=True).stdout
    assert said.startswith("['(now, age=3)'")
