"""Shortlist: millions of items into the ten that matter to one person.

Everything that a project file needs is here, and what programs need to run one. Nothing is imported before it is used
(PEP 562), so that `import shortlist` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortlist.events.labels import Labels, ObservedPositives
    from shortlist.events.schema import Entity, Event
    from shortlist.features.definitions import EventType, Impression, ratio, request_feature
    from shortlist.framing.objective import Constraints, Guardrail, Objective
    from shortlist.framing.problems import Problem, ProjectError
    from shortlist.project import Project, load_project
    from shortlist.ranking.specs import BoostedTrees, DeepCross, Ensemble, LambdaMART, LogisticRegression
    from shortlist.retrieval.specs import (
        CoVisitation,
        FactorizationMachine,
        Fresh,
        GraphFilter,
        LinearAutoencoder,
        MatrixFactorisation,
        Popular,
        TwoTower,
    )
    from shortlist.settings import Settings, load_settings
    from shortlist.slate.specs import DPP, MMR, Boost, Cap, Exclude, Explore, Fairness, Pin, Seen

__version__ = "0.1.0"

__all__ = [
    "DPP",
    "MMR",
    "Boost",
    "BoostedTrees",
    "Cap",
    "CoVisitation",
    "Constraints",
    "DeepCross",
    "Ensemble",
    "Entity",
    "Event",
    "EventType",
    "Exclude",
    "Explore",
    "FactorizationMachine",
    "Fairness",
    "Fresh",
    "GraphFilter",
    "Guardrail",
    "Impression",
    "Labels",
    "LambdaMART",
    "LinearAutoencoder",
    "LogisticRegression",
    "MatrixFactorisation",
    "Objective",
    "ObservedPositives",
    "Pin",
    "Popular",
    "Problem",
    "Project",
    "ProjectError",
    "Seen",
    "Settings",
    "TwoTower",
    "load_project",
    "load_settings",
    "ratio",
    "request_feature",
]

_HOMES = {
    "shortlist.events.labels": ("Labels", "ObservedPositives"),
    "shortlist.events.schema": ("Entity", "Event"),
    "shortlist.features.definitions": ("EventType", "Impression", "ratio", "request_feature"),
    "shortlist.framing.objective": ("Constraints", "Guardrail", "Objective"),
    "shortlist.framing.problems": ("Problem", "ProjectError"),
    "shortlist.project": ("Project", "load_project"),
    "shortlist.ranking.specs": ("BoostedTrees", "DeepCross", "Ensemble", "LambdaMART", "LogisticRegression"),
    "shortlist.retrieval.specs": (
        "CoVisitation",
        "FactorizationMachine",
        "Fresh",
        "GraphFilter",
        "LinearAutoencoder",
        "MatrixFactorisation",
        "Popular",
        "TwoTower",
    ),
    "shortlist.settings": ("Settings", "load_settings"),
    "shortlist.slate.specs": ("DPP", "MMR", "Boost", "Cap", "Exclude", "Explore", "Fairness", "Pin", "Seen"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shortlist' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
