"""A bookshelf: which books does this reader want next? Replace every line with your own; `shortlist validate` helps."""

from typing import Any

from shortlist import (
    Ensemble,
    Entity,
    EventType,
    LambdaMART,
    LogisticRegression,
    Objective,
    ObservedPositives,
    Popular,
    Project,
    TwoTower,
    ratio,
    request_feature,
)

# 1. What there is. Types: str, int, float, bool, list[str]; write `| None` where a value may be absent.
#    Attributes arrive as events too: {"kind": "book", "at": ..., "book": "dune", "title": "Dune", "year": 1965}
reader = Entity("reader", age=int)
book = Entity("book", title=str, author=str, genres=list[str], year=int)

# 2. What happens: a name, the entities it is about, and its own fields.
#    {"kind": "finish", "at": 1767311999000, "reader": "ada", "book": "dune", "stars": 5}
open_ = EventType("open", reader, book)
finish = EventType("finish", reader, book, stars=int | None)

# 3. What we know when somebody asks. Training replays the past through the very same code that serves.
history = open_.by(reader).last("book", 20)
user_stars = finish.by(reader).mean("stars").named("reader_stars")


@request_feature
def book_age_years(now: Any, book_year: Any) -> Any:
    """Any function of other columns; `now` is the time of the request in ms."""
    return now / 31_556_952_000 + 1970 - book_year


features = [
    history,
    user_stars,
    open_.by(reader).count("7d"),
    open_.by(book).decayed_count(half_life="30d"),
    finish.by(book).mean("stars").named("book_stars"),
    ratio(finish.by(book).count(), open_.by(book).count(), prior=5).named("book_finish_rate"),
    open_.by(reader).share("book.genres"),
    open_.by(reader).share("book.author"),
    book_age_years,
]

# 4. What is good, who proposes and who ranks. All rankers are measured; their mean serves.
#    Here nobody logged what was shown and ignored, so only what was finished is known to be good. Once the service
#    runs it logs impressions: then declare Impression(reader, book) and use Labels(impression, {open_: 1, finish: 3}).
project = Project(
    name="bookshelf",
    user=reader,
    item=book,
    events=[open_, finish],
    features=features,
    labels=ObservedPositives({finish: 1.0}),
    objective=Objective("books finished", proxies={"finish": 1.0}),
    sources=[
        Popular(),
        TwoTower(history, user_attributes=("age",), item_attributes=("genres", "author"), dimensions=32),
    ],
    rankers=[LogisticRegression(), LambdaMART(), Ensemble()],
)
