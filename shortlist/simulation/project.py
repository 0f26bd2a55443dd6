"""The simulated world as a project: what a user of Shortlist would declare for it."""

from __future__ import annotations

from typing import Any

from shortlist import (
    DeepCross,
    Entity,
    EventType,
    Explore,
    FactorizationMachine,
    Fresh,
    Guardrail,
    Impression,
    Labels,
    LambdaMART,
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
behind = ("item.category", "item.tags", "item.creator")

features: list[Feature] = [
    # the user: how active, and what they came for
    click.by(user).count("7d"),
    watch.by(user).mean("seconds", over="30d"),
    ratio(click.by(user).count("30d"), impression.by(user).count("30d"), prior=20).named("user_click_rate_30d"),
    watch.by(user).time_since(),
    history,
    clicked,
    # the item: how good, how hot, and how sure that is
    impression.by(item).count(),
    impression.by(item).count("7d"),
    click.by(item).decayed_count("2d"),
    ratio(click.by(item).count("7d"), impression.by(item).count("7d"), prior=30).named("item_click_rate_7d"),
    *(rate(action, item, prior=30) for action in (click, watch, like, hide)),
    # what stands behind the item: known even when the item itself is new
    *(rate(action, key, prior=50) for key in behind for action in (click, watch, like)),
    # the two together
    *(action.by(user).share(key) for key in behind for action in (click, watch)),
    like.by(user).share("item.tags"),
    *(rate(action, user, key, prior=30) for key in behind for action in (click, watch)),
    *(impression.by(user, key).count() for key in behind),
    # the request
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
    rankers=[LogisticRegression(), LambdaMART(), DeepCross()],
    slate=[Explore(1, among="fresh", temperature=0.1)],
)
