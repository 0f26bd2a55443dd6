"""Films: which ten of many thousand films does this person want to watch next?

Two stages, as at YouTube and Netflix: sources propose a few hundred films, a ranker puts the best ten on top.
Try a change and see what it does: `shortlist validate`, then `shortlist train`.
"""

from typing import Any

from shortlist import (
    BoostedTrees,
    Constraints,
    Ensemble,
    Entity,
    EventType,
    Guardrail,
    LambdaMART,
    LinearAutoencoder,
    LogisticRegression,
    Objective,
    ObservedPositives,
    Popular,
    Project,
    TwoTower,
    ratio,
    request_feature,
)

# What there is. Attributes arrive as events too, of the kind "user" or "film".
user = Entity("user", gender=str, age=int, occupation=str)
film = Entity("film", title=str, genres=list[str], year=int)

# What happens. Somebody watches a film, and may say how they liked it with 0.5 to 5 stars; somebody tags one.
watch = EventType("watch", user, film, stars=float | None)
tag = EventType("tag", user, film, text=str)

# What we know when somebody asks. Every line is one column, kept up to date with every event and, for training,
# replayed as of each moment of the past by the very same code.
loved = watch.where("stars", ">=", 4.0)
history = watch.by(user).last("film", 50)
loved_films = loved.by(user).last("film", 500).named("loved_films")

film_love = ratio(loved.by(film).count(), watch.by(film).count(), prior=20).named("film_love")
film_stars = watch.by(film).mean("stars").named("film_stars")
user_stars = watch.by(user).mean("stars").named("user_stars")


@request_feature
def film_age_years(now: Any, film_year: Any) -> Any:
    """Years since the film came out."""
    return now / 31_556_952_000 + 1970 - film_year


@request_feature
def stars_above_usual(film_stars: Any, user_stars: Any) -> Any:
    """How much better the film is liked than this user likes films."""
    return film_stars - user_stars


features = [
    # the user: how much they watch, how strict they are, what they saw last
    watch.by(user).count(),
    watch.by(user).count("1d"),
    watch.by(user).std("stars"),
    watch.by(user).time_since(),
    user_stars,
    history,
    loved_films,
    # the film: how popular, how hot, how good
    watch.by(film).count(),
    watch.by(film).count("30d"),
    watch.by(film).decayed_count(half_life="365d"),
    watch.by(film).std("stars"),
    watch.by(film).time_since(),
    tag.by(film).count(),
    film_stars,
    film_love,
    # what stands behind the film
    ratio(loved.by("film.genres").count(), watch.by("film.genres").count(), prior=50).named("genre_love"),
    # the two together: how much of what they watch and love is of this film's genres
    watch.by(user).share("film.genres"),
    watch.by(user).share("film.genres", over="365d"),
    loved.by(user).share("film.genres").named("user_love_share_film_genres"),
    watch.by(user, "film.genres").mean("stars").named("user_genre_stars"),
    # the request
    film_age_years,
    stars_above_usual,
]

project = Project(
    name="films",
    user=user,
    item=film,
    events=[watch, tag],
    features=features,
    # Ratings come without impressions: nobody knows what was shown and ignored. What got four stars or more is
    # positive; training draws the negatives itself.
    labels=ObservedPositives({watch: 1.0}, where=("stars", ">=", 4.0)),
    objective=Objective(
        "hours watched by people who come back",
        proxies={"watch": 1.0},
        guardrails=(Guardrail("coverage@10", at_least=0.005),),
    ),
    constraints=Constraints(deadline_ms=100),
    sources=[
        Popular(),
        LinearAutoencoder(loved_films, most_items=3_000),  # the films that two people or more loved
        TwoTower(
            history,
            user_attributes=("gender", "age", "occupation"),
            item_attributes=("genres", "year"),
            dimensions=128,  # as good as 256 on these ten thousand films, in two thirds of the time
        ),
    ],
    # three that err in different places, and their mean, which serves
    rankers=[LogisticRegression(), LambdaMART(), BoostedTrees("pointwise"), Ensemble()],
)
