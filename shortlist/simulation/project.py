"""The simulated world as a project: what a user of Shortlist would declare for it."""

from __future__ import annotations

from typing import Any

from shortlist import (
    Entity,
    EventType,
    Guardrail,
    Impression,
    Labels,
    LambdaMART,
    LogisticRegression,
    Objective,
    Popular,
    Project,
    TwoTower,
    ratio,
    request_feature,
)
from shortlist.features.definitions import Feature

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


history = watch.by(user).last("item", 50)

features: list[Feature] = [
    # the user: how active, and what they came for
    click.by(user).count("7d"),
    watch.by(user).mean("seconds", over="30d"),
    ratio(click.by(user).count("30d"), impression.by(user).count("30d"), prior=20).named("user_click_rate"),
    watch.by(user).time_since(),
    history,
    # the item: how good, and how hot
    impression.by(item).count("7d"),
    click.by(item).decayed_count("2d"),
    ratio(click.by(item).count(), impression.by(item).count(), prior=30).named("item_click_rate"),
    ratio(click.by(item).count("7d"), impression.by(item).count("7d"), prior=30).named("item_click_rate_7d"),
    ratio(watch.by(item).count(), impression.by(item).count(), prior=30).named("item_watch_rate"),
    ratio(like.by(item).count(), impression.by(item).count(), prior=30).named("item_like_rate"),
    ratio(hide.by(item).count(), impression.by(item).count(), prior=30).named("item_hide_rate"),
    # what stands behind the item: known even when the item itself is new
    ratio(watch.by("item.creator").count(), impression.by("item.creator").count(), prior=50).named(
        "creator_watch_rate"
    ),
    ratio(watch.by("item.tags").count(), impression.by("item.tags").count(), prior=50).named("tag_watch_rate"),
    # the two together
    watch.by(user).share("item.category"),
    watch.by(user).share("item.tags"),
    ratio(click.by(user, "item.category").count(), impression.by(user, "item.category").count(), prior=5).named(
        "user_category_click_rate"
    ),
    ratio(watch.by(user, "item.tags").count(), impression.by(user, "item.tags").count(), prior=5).named(
        "user_tag_watch_rate"
    ),
    ratio(watch.by(user, "item.creator").count(), impression.by(user, "item.creator").count(), prior=5).named(
        "user_creator_watch_rate"
    ),
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
        TwoTower(
            history,
            user_attributes=("age", "device", "country"),
            item_attributes=("category", "creator", "tags"),
        ),
    ],
    rankers=[LambdaMART(), LogisticRegression()],
)
