"""What can be tuned: for each kind of source and ranker the settings that are worth trying, and from where to where.

A new kind is one entry here. Settings that training chooses by itself (a number of trees or epochs, a penalty) are not
among them, nor are quotas: those are a matter of time, which no measure of quality knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from shortlist.ranking.specs import BoostedTrees, DeepCross
from shortlist.retrieval.specs import CoVisitation, GraphFilter, LinearAutoencoder, Popular, TwoTower

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`; whole ones where both are. `log` where factors count, not differences."""

    low: float
    high: float
    log: bool = True

    def drawn(self, trial: Trial, name: str) -> Any:
        """What a trial suggests, in as many digits as one would write."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}")


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def drawn(self, trial: Trial, name: str) -> Any:
        """What a trial suggests."""
        return {repr(value): value for value in self.values}[
            trial.suggest_categorical(name, list(map(repr, self.values)))
        ]


Space = Mapping[str, Between | OneOf]

SPACES: Mapping[type, Space] = {
    Popular: {"half_life": OneOf(("3d", "7d", "30d", "90d", "365d"))},
    TwoTower: {
        "dimensions": OneOf((32, 64, 128, 256)),
        "learning_rate": Between(0.001, 0.03),
        "temperature": Between(0.05, 0.5),
    },
    CoVisitation: {"popularity": Between(0.05, 1.0, log=False), "neighbours": Between(20, 1_000)},
    LinearAutoencoder: {"ridge": Between(1.0, 10_000.0)},
    GraphFilter: {"rank": Between(32, 512), "neighbours": Between(64, 1_024)},
    BoostedTrees: {
        "leaves": Between(4, 127),
        "learning_rate": Between(0.02, 0.3),
        "rows_per_leaf": Between(5, 200),
    },
    DeepCross: {
        "layers": Between(1, 4, log=False),
        "hidden": OneOf(((64,), (128, 64), (256, 128))),
        "learning_rate": Between(0.0003, 0.01),
    },
}


def space_of(spec: object) -> Space:
    """What can be tuned of a source or ranker; nothing, of a kind that is not listed."""
    return next((SPACES[kind] for kind in type(spec).__mro__ if kind in SPACES), {})


def written(spec: Any, settings: Mapping[str, Any]) -> str:
    """The settings as they are pasted into the project file.

    The whole declaration where it can be written down; else the arguments that go into the one that is there.
    """
    kind = type(spec).__name__
    plain = {
        field.name: getattr(spec, field.name)
        for field in fields(spec)
        if field.init and (field.default is MISSING or getattr(spec, field.name) != field.default)
    }
    if all(is_literal(value) for value in plain.values()):
        return f"{kind}({arguments({**plain, **settings})})"
    return f"# in {kind}(...), which is called {spec.name!r}:\n{arguments(settings)},"


def arguments(settings: Mapping[str, Any]) -> str:
    """Keyword arguments as Python."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def is_literal(value: object) -> bool:
    """Whether `repr` gives back what was written."""
    if isinstance(value, tuple | list):
        return all(map(is_literal, value))
    return value is None or isinstance(value, str | int | float | bool)
