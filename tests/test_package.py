"""The package as a whole: what importing it costs, and that nothing escapes the tests written for its Protocols."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shortlist
from shortlist.events.log import EventLog
from shortlist.pipeline import stages

HEAVY = (
    "numpy",
    "pyarrow",
    "numba",
    "torch",
    "lightgbm",
    "onnxruntime",
    "faiss",
    "starlette",
    "uvicorn",
    "rich",
    "onnx",
)
ROOT = Path(__file__).parents[1]


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import shortlist",
        "import shortlist.cli",
        "from shortlist import *",
        "from shortlist.templates.films.project import project; assert project.problems() == []",
    ],
)
def test_declaring_a_project_loads_no_heavy_library(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_serving_needs_neither_torch_nor_the_trainers() -> None:
    assert not {"torch", "lightgbm", "onnx", "rich"} & loaded_by("import shortlist.serving.running")


def test_the_front_page_holds_what_it_promises() -> None:
    assert sorted(shortlist.__all__) == list(shortlist.__all__)
    assert set(shortlist.__all__) <= set(dir(shortlist))
    for name in shortlist.__all__:
        assert getattr(shortlist, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Projekt'"):
        shortlist.Projekt  # noqa: B018


def modules() -> list[str]:
    """Every module of the package but those that are run."""
    found = [module.name for module in pkgutil.walk_packages(shortlist.__path__, "shortlist.")]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


VERBS = {
    stages.QueryHydrator: "learn",
    stages.Source: "propose",
    stages.Hydrator: "describe",
    stages.Filter: "keep",
    stages.Scorer: "score",
    stages.Merger: "merge",
    stages.Selector: "arrange",
    stages.Observer: "observe",
    stages.Ranker: "rank",
    EventLog: "append_imported",
}


def implementations(protocol: type, verb: str) -> list[str]:
    """The classes of the package that have the protocol's verb with its parameters."""
    wanted = list(inspect.signature(getattr(protocol, verb)).parameters)
    return [
        value.__name__
        for name in modules()
        for _, value in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if value.__module__ == name and not getattr(value, "_is_protocol", False) and verb in vars(value)
        if list(inspect.signature(getattr(value, verb)).parameters) == wanted
    ]


@pytest.mark.parametrize(("protocol", "verb"), VERBS.items(), ids=lambda part: getattr(part, "__name__", part))
def test_every_implementation_of_a_protocol_is_named_in_a_test(protocol: type, verb: str) -> None:
    found = implementations(protocol, verb)
    tests = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").glob("*.py"))
    assert found, f"nothing implements {protocol.__name__}"
    assert [name for name in found if not re.search(rf"\b{name}\b", tests)] == []
