"""What a request feature does, as text: its source, and all of the project's own that it uses."""

from __future__ import annotations

import hashlib
import inspect
import os
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from shortlist.framing.problems import is_ours

STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}
"""Where Python and libraries lie. What is used of those is told by its name, which stands in the source."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))
HOLDERS = {classmethod: "__func__", staticmethod: "__func__", property: "fget", partial: "func"}
WRAPPED = ("__wrapped__", "py_func", "func")
"""Where a function is kept by those of Python, and by what is cached or compiled."""

Found = dict[str, set[str]]


def used_code(function: Any) -> list[str]:
    """The source of a function, then what it uses by name: functions and classes of the project, and constants.

    A helper's helpers belong to it, wherever they are; each comes once, as `name = source or value`, sorted. Of what
    has no source (it was made at a prompt) the parameters stand for it.
    """
    found: Found = {}
    _follow(_function_of(function), found, set())
    return [_source(function), *(f"{name} = {each}" for name, said in sorted(found.items()) for each in sorted(said))]


def _follow(made: Any, found: Found, visited: set[int]) -> None:
    """Add what a function or a class uses to what is found, and what that uses."""
    for name, value in _used(made):
        used = _function_of(value)
        if _is_plain(value):
            found.setdefault(f"{made.__module__}.{name}", set()).add(_written(value))
        elif isinstance(used, FunctionType | type) and id(used) not in visited and _is_own(used):
            visited.add(id(used))
            found.setdefault(f"{used.__module__}.{used.__qualname__}", set()).add(_source(used))
            _follow(used, found, visited)


def _function_of(value: Any) -> Any:
    """The function that a method, a property, or something cached or compiled wraps; else the value itself."""
    if isinstance(value, FunctionType | type | ModuleType):
        return value
    if type(value) in HOLDERS:
        return getattr(value, HOLDERS[type(value)])
    inner = (inspect.getattr_static(value, name, None) for name in WRAPPED)  # asking runs no code of the value's
    return next((each for each in inner if isinstance(each, FunctionType)), value)


def _used(made: Any) -> Iterator[tuple[str, Any]]:
    """Names that the code of a function, or of a class, looks up outside of itself, each with its value."""
    if isinstance(made, type):
        yield from ((each.__name__, each) for each in made.__bases__)
        yield from ((name, value) for name, value in vars(made).items() if not name.startswith("__"))
        yield from (pair for method in _methods(made) for pair in _used(method))
    if not isinstance(made, FunctionType):
        return
    names = set(_names(made.__code__))
    known = {name: made.__globals__[name] for name in names if name in made.__globals__}
    for name, value in [*known.items(), *_held(made), *_defaults(made)]:
        yield name, value
        if isinstance(value, ModuleType) and _is_own(value):
            yield from ((each, getattr(value, each)) for each in names if hasattr(value, each))


def _methods(made: type) -> list[FunctionType]:
    """The functions that a class defines, properties and class methods among them."""
    return [each for each in map(_function_of, vars(made).values()) if isinstance(each, FunctionType)]


def _held(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function sees of the one that it was made in."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield from ((name, value) for value in _content(cell))


def _content(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not assigned yet
        return []


def _defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values of parameters that have one: in the source they may stand as a name."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            yield f"{function.__qualname__}.{name}", parameter.default


def _names(code: CodeType) -> Iterator[str]:
    """The names that code looks up, that of functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_own(value: FunctionType | type | ModuleType) -> bool:
    """Whether something lies in the project, and neither in Python, nor in what is installed, nor in this package."""
    if isinstance(value, type):  # the module that it names may be another one of that name by now
        return any(map(_is_own, _methods(value)))
    try:
        file = inspect.getfile(value)
    except TypeError:  # built in
        return False
    return not (file.startswith(STANDARD) or INSTALLED & set(Path(file).parts) or is_ours(file))


def _is_plain(value: Any) -> bool:
    """Whether a value is a constant that can be written down."""
    if isinstance(value, Mapping):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) or (isinstance(value, np.ndarray) and not value.dtype.hasobject)


def _written(value: Any) -> str:
    """A constant, the same in every process: sets have no order of their own."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written(key)}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_written, value))) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_written, value)) + ")"
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)


def _source(made: Any) -> str:
    if isinstance(made, type):
        return "".join(map(_source, _methods(made)))
    try:
        return inspect.getsource(made)
    except (OSError, TypeError):
        return str(inspect.signature(made))
