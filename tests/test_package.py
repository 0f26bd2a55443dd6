"""The package as a whole: what importing it costs, and what its front page holds."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import shortlist

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
    assert len(set(shortlist.__all__)) == len(shortlist.__all__)
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
