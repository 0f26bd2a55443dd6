"""The simulated world as a project: what a user of Shortlist would declare for it."""

from __future__ import annotations

from typing import Any

from shortlist import (
    DeepCross,
    Ensemble,
    Entity,
    EventType,
    Explore,
    FactorizationMachine,
    Fresh,
    Guardrail,
    Impression,
    Labels,
    LinearAutoencoder,
    LogisticRegression,
    Objective,
    Popular,
    Project,
    TwoTower,
    ratio,
    request_feature,
)
from shortlist.features.definitions import Feature, Ratio

user = Entity("user", age=int, device=str, country=str)
item = Entity("item", category=str, creator=str, tags=list[str], title=str, published=int)

impression = Impression(user, item)
click = EventType("click", user, item)
watch = EventType("watch", user, item, seconds=float)
like = EventType("like", user, item)
hide = EventType("hide", user, item)


@request_feature
def item_age_days(now: Any, item_published: Any) -> Any:
    """Days since the item was published."""
    return (now - item_published) / 86_400_000


def rate(action: EventType, *by: Any, prior: float) -> Ratio:
    """How often an action follows an impression. The prior is about as many impressions as one action takes."""
    name = "_".join(key.name if isinstance(key, Entity) else key.removeprefix("item.") for key in by)
    return ratio(action.by(*by).count(), impression.by(*by).count(), prior=prior).named(f"{name}_{action.kind}_rate")


history = watch.by(user).last("item", 50)
clicked = click.by(user).last("item", 500).named("clicked")
# Few columns, on purpose: the factorisation machine's score says what a user thinks of an item, and what else predicts
# clicks on the old policy's slates (what it showed to whom) misleads where slates are new. LOG.md has the figures.
features: list[Feature] = [
    history,
    clicked,
    ratio(click.by(user).count("30d"), impression.by(user).count("30d"), prior=20).named("user_click_rate_30d"),
    impression.by(item).count(),
    *(rate(action, item, prior=30) for action in (watch, like)),
    rate(watch, "item.creator", prior=50),
    item_age_days,
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
        LinearAutoencoder(clicked),
        FactorizationMachine(
            user_attributes=("age", "device", "country"), item_attributes=("category", "creator", "tags")
        ),
        TwoTower(
            history,
            user_attributes=("age", "device", "country"),
            item_attributes=("category", "creator", "tags"),
        ),
    ],
    rankers=[LogisticRegression(), DeepCross(), Ensemble()],
    slate=[Explore(1, among="fresh", temperature=0.1)],
)
