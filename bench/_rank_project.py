"""The project of `python -m bench rank`: 18 feature columns of a shop, the shape of a public re-ranker's benchmark."""

from __future__ import annotations

from shortlist import Entity, EventType, LambdaMART, Objective, ObservedPositives, Popular, Project, ratio
from shortlist.features.definitions import Aggregate, Ratio, RequestFeature

user = Entity("user")
item = Entity("item", category=str, price=float, year=int)
view = EventType("view", user, item, seconds=float)
click = EventType("click", user, item)

features: list[Aggregate | Ratio | RequestFeature] = [
    view.by(item).count("1d"),
    view.by(item).count("7d"),
    view.by(item).count("30d"),
    click.by(item).count("1d"),
    click.by(item).count("7d"),
    click.by(item).count("30d"),
    ratio(click.by(item).count("7d"), view.by(item).count("7d"), prior=20).named("item_ctr_7d"),
    ratio(click.by(item).count("30d"), view.by(item).count("30d"), prior=20).named("item_ctr_30d"),
    view.by(item).mean("seconds"),
    view.by(item).time_since(),
    view.by(user).count("1d"),
    view.by(user).count("30d"),
    click.by(user).count("30d"),
    view.by(user, item).count("30d"),
    view.by(user).share("item.category"),
    click.by(user).share("item.category"),
]

project = Project(
    name="rank-bench",
    user=user,
    item=item,
    events=[view, click],
    features=features,
    labels=ObservedPositives({click: 1.0}),
    objective=Objective("clicks", proxies={"click": 1.0}),
    sources=[Popular()],
    rankers=[LambdaMART(trees=100)],
)
