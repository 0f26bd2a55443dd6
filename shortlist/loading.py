"""Reading a user's project file: what goes wrong there is the user's to mend, so it is said by file and line."""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from shortlist.framing.problems import Problem, ProjectError, nearest
from shortlist.project import Project

MODULE = "shortlist_user_project"
EXPECTED = "a Python file that declares one Project; `shortlist init DIR` makes one to start from"


def project_in(path: Path) -> Project:
    """The project that the file declares, unchecked. Raises ProjectError when there is not exactly one."""
    file = path / "project.py" if path.is_dir() else path
    if not file.is_file():
        raise ProjectError([Problem(str(file), "no such file", f"expected {EXPECTED}")])
    module = execute(file.resolve())
    found = list({id(value): value for value in vars(module).values() if isinstance(value, Project)}.values())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ProjectError(
            [Problem(str(file), "declares no Project", "write `project = Project(...)` at its top level")]
        )
    first = found[0]
    raise ProjectError(
        Problem(
            other.place, f"a second Project, {other.name!r}", f"one file declares one; the first is at {first.place}"
        )
        for other in found[1:]
    )


def execute(file: Path) -> ModuleType:
    """Run the file as a module, with its own folder first on the import path. Raises ProjectError when it fails."""
    module = ModuleType(MODULE)
    module.__file__ = str(file)
    try:
        code = compile(file.read_bytes(), str(file), "exec")
    except SyntaxError as error:
        place = f"{error.filename or file}:{error.lineno or 1}"
        written = f" in `{error.text.strip()}`" if error.text else ""
        raise ProjectError([Problem(place, f"not valid Python: {error.msg}{written}", "mend the syntax")]) from error
    except (ValueError, OSError) as error:  # null bytes, an unknown encoding, an unreadable file
        raise ProjectError([Problem(str(file), f"cannot be read: {error}", f"expected {EXPECTED}")]) from error
    sys.modules[MODULE] = module  # dataclasses and typing look their module up while the file runs
    try:
        with first_on_path(file.parent):
            exec(code, vars(module))
    except (Exception, SystemExit) as error:
        raise ProjectError([failure(error, file, module)]) from error
    return module


@contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def failure(error: BaseException, file: Path, module: ModuleType) -> Problem:
    """The exception as a problem at the last line of the user's own code that it passed."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)]
    own = [frame for frame in lines if frame.filename.startswith(str(file.parent))] or lines
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)
    return Problem(place, f"{type(error).__name__}: {error}", hint(error, module))


def is_ours(filename: str) -> bool:
    """Whether a frame belongs to this package or the import system rather than to the user."""
    return filename.startswith((str(Path(__file__).parent / ""), "<"))


def hint(error: BaseException, module: ModuleType) -> str:
    """What to do, with the nearest right name where a name is wrong."""
    if isinstance(error, NameError) and error.name:
        return nearest(error.name, [*vars(module), *public_names(), *dir(builtins)])
    if isinstance(error, ModuleNotFoundError):
        return "install it, or mend the import"
    if isinstance(error, ImportError) and (
        match := re.match(r"cannot import name '(\w+)' from 'shortlist'", error.msg)
    ):
        return nearest(match[1], public_names())
    if isinstance(error, AttributeError) and error.name:
        return nearest(error.name, [name for name in dir(error.obj) if not name.startswith("_")])
    if isinstance(error, TypeError) and (argument := wrong_argument(str(error))):
        return argument
    return "the project file must run without errors"


def wrong_argument(message: str) -> str:
    """The nearest parameter of one of our declarations, for a call with an argument it does not take."""
    match = re.match(r"(?:\w+\.)*?(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", message)
    declaration = match and getattr(importlib.import_module("shortlist"), match[1], None)
    if match is None or declaration is None:
        return ""
    import inspect

    return nearest(match[2], [name for name in inspect.signature(declaration).parameters if name != "place"])


def public_names() -> list[str]:
    """What a project file can import from `shortlist`."""
    return list(importlib.import_module("shortlist").__all__)
