"""An explanation for people: what an answer's items are made of, and what happened on the way to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = tuple[str, str]


def describe(columns: Mapping[str, float | None]) -> str:
    """An item's columns in one line."""
    return " ".join(
        f"{name}={value:.3g}"
        for name, value in columns.items()
        if value is not None and name not in ("score", "log_position")
    )


def actions_of(explanation: Mapping[str, Any]) -> list[str]:
    """The actions whose probabilities the ranker knows."""
    return list(dict.fromkeys(action for made in explanation["items"] for action in made["probabilities"]))


def chances(made: Mapping[str, Any], actions: Sequence[str]) -> list[str]:
    """How probable each action on an item is."""
    found = (made["probabilities"].get(action) for action in actions)
    return ["-" if value is None else f"{value:.3f}" for value in found]


def steps(answer: Mapping[str, Any]) -> Iterator[Row]:
    """What each step of the way did: sources, filters, and every rule of the slate by its name."""
    explanation = answer["explanation"]
    yield "sources", counts(explanation["sources"], "proposed")
    yield "filters", counts(explanation["filters"], "dropped")
    propensities = answer.get("propensities") or [1.0] * len(answer["items"])
    for rule, told in explanation["slate"].items():
        yield rule, "; ".join(done(told, propensities))


def counts(stages: Mapping[str, Mapping[str, Any]], verb: str) -> str:
    """The count of each stage, as in `dropped: not_seen 12, available 0`."""
    return f"{verb}: {', '.join(f'{name} {told[verb]:,}' for name, told in stages.items()) or 'nothing'}"


def done(told: Mapping[str, Any], propensities: Sequence[float]) -> Iterator[str]:
    """What one rule did to the slate, in words."""
    if "unused" in told:
        yield f"not used: {told['unused']}"
    if "boosted" in told:
        yield f"{plural(told['boosted'], 'candidate')} boosted"
    if "among" in told:
        drawn = ", ".join(f"place {place} (probability {propensities[place - 1]:.3g})" for place in told["places"])
        yield f"drawn: {drawn}, among {plural(told['among'], 'candidate')}" if drawn else "nothing to draw"
    elif "places" in told:
        yield f"at place {', '.join(map(str, told['places']))}" if told["places"] else "at no place"
    if "moved" in told:
        yield f"changed {plural(told['moved'], 'place')}" if told["moved"] else "changed nothing"
    if told.get("waived"):
        yield f"could not hold at {plural(told['waived'], 'place')}"
    for group, lack in told.get("short", {}).items():
        yield f"{group} lacks {lack:.1%} of the exposure"


def plural(count: int, noun: str) -> str:
    """So many of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
