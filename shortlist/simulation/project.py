"""The simulated world as a project: what a user of Shortlist would declare for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from shortlist import (
    Boost,
    Entity,
    EventType,
    Explore,
    FactorizationMachine,
    Fresh,
    Guardrail,
    Impression,
    Labels,
    LogisticRegression,
    Objective,
    Popular,
    Project,
    ratio,
    request_feature,
)
from shortlist.features.definitions import Feature
from shortlist.simulation.behaviour import DAY_MS

user = Entity("user", age=int, device=str, country=str)
item = Entity("item", category=str, creator=str, tags=list[str], title=str, published=int)

impression = Impression(user, item)
click = EventType("click", user, item)
watch = EventType("watch", user, item, seconds=float)
like = EventType("like", user, item)
hide = EventType("hide", user, item)


def age_days(now: Any, published: Any) -> Any:
    """How many days ago a moment was, from 0 on."""
    return np.maximum(now - published, 0) / DAY_MS


@request_feature
def item_newness(now: Any, item_published: Any) -> Any:
    """How new the item is: less by one for every e-fold of its age, from a day on."""
    return -np.log1p(age_days(now, item_published))


@request_feature
def item_of_today(now: Any, item_published: Any) -> Any:
    """How new the item is: 1 at first, less by 1 / e for every day."""
    return np.exp(-age_days(now, item_published))


@request_feature
def item_of_this_week(now: Any, item_published: Any) -> Any:
    """How new the item is: 1 at first, less by 1 / e for every seven days."""
    return np.exp(-age_days(now, item_published) / 7)


# Few columns, on purpose: the factorisation machine's score says what a user thinks of an item. What else predicts
# clicks on the old policy's slates (rates, shares, other sources' scores) misleads where slates are new: see LOG.md.
features: list[Feature] = [
    ratio(click.by(user).count("30d"), impression.by(user).count("30d"), prior=20).named("user_click_rate_30d"),
    item_newness,
    item_of_today,
    item_of_this_week,
]

project = Project(
    name="world",
    user=user,
    item=item,
    events=[impression, click, watch, like, hide],
    features=features,
    labels=Labels(impression, {click: 1.0, watch: 2.0, like: 3.0}),
    objective=Objective(
        "what a slate is worth to the user: clicks, watches and likes, less what they hide",
        proxies={"click": 1.0, "watch": 2.0, "like": 3.0, "hide": -1.0},
        guardrails=(Guardrail("coverage@10", at_least=0.005),),
    ),
    sources=[
        Popular(),
        Fresh(),
        FactorizationMachine(
            user_attributes=("age", "device", "country"),
            item_attributes=("category", "creator", "tags"),
            amounts={watch: "seconds"},
        ),
    ],
    rankers=[LogisticRegression()],
    slate=[
        Boost(1.1, where=("published", "within", "3d")),  # half of what makes an item good shows later
        Explore(1, among="fresh", temperature=0.04),
    ],
)
