"""The project of `python -m bench serve`: popular items, two towers, 50 columns, and either of two rankers."""

from __future__ import annotations

from collections.abc import Mapping

from shortlist import (
    DeepCross,
    Entity,
    EventType,
    LambdaMART,
    Objective,
    ObservedPositives,
    Popular,
    Project,
    TwoTower,
    ratio,
)
from shortlist.features.definitions import Aggregate, Ratio, RequestFeature
from shortlist.ranking.specs import RankerSpec

user = Entity("user", age=int)
item = Entity("item", category=str, price=float, year=int, length=float)
view = EventType("view", user, item, seconds=float)
click = EventType("click", user, item)

WINDOWS = ("1h", "6h", "1d", "7d", "30d")
history = view.by(user).last("item", 50)
towers = TwoTower(history, item_attributes=("category",), epochs=1)

features: list[Aggregate | Ratio | RequestFeature] = [
    *(stream.by(item).count(window) for stream in (view, click) for window in WINDOWS),
    *(
        ratio(click.by(item).count(window), view.by(item).count(window), prior=20).named(f"item_ctr_{window}")
        for window in ("1d", "7d", "30d")
    ),
    view.by(item).mean("seconds", over="7d"),
    view.by(item).mean("seconds"),
    view.by(item).std("seconds"),
    view.by(item).max("seconds"),
    view.by(item).time_since(),
    click.by(item).time_since(),
    *(stream.by(item).decayed_count(life) for stream in (view, click) for life in ("1d", "7d")),
    *(stream.by(user).count(window) for stream in (view, click) for window in ("1h", "1d", "7d", "30d")),
    *(
        ratio(click.by(user).count(window), view.by(user).count(window), prior=20).named(f"user_ctr_{window}")
        for window in ("7d", "30d")
    ),
    view.by(user).mean("seconds", over="7d"),
    view.by(user).mean("seconds"),
    view.by(user).std("seconds"),
    view.by(user).time_since(),
    click.by(user).time_since(),
    view.by(user).decayed_count("1d"),
    view.by(user).decayed_count("7d"),
    view.by(user, item).count(),
    view.by(user, item).time_since(),
    view.by(user).share("item.category"),
    click.by(user).share("item.category"),
    view.by(user).share("item.category", over="30d"),
    history,
]

rankers: Mapping[str, RankerSpec] = {"trees": LambdaMART(trees=300, leaves=63), "network": DeepCross()}
"""What `--ranker` chooses among."""

project = Project(
    name="serve-bench",
    user=user,
    item=item,
    events=[view, click],
    features=features,
    labels=ObservedPositives({click: 1.0}),
    objective=Objective("clicks", proxies={"click": 1.0, "view": 0.1}),
    sources=[towers, Popular()],
    rankers=list(rankers.values()),
)
