"""What travels over HTTP: requests, answers and errors, as msgspec structs that are also the OpenAPI schemas."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from shortlist.serving.limits import Limits

Id = Annotated[str, Meta(min_length=1, max_length=1024, description="An entity's id: 1 to 1024 characters.")]
Milliseconds = Annotated[float, Meta(gt=0, le=60_000)]


def at_most(count: int, description: str = "") -> Meta:
    """How long a list may be, for the description: what is longer is refused where it can be said how long it was."""
    return Meta(description=description or None, extra_json_schema={"maxItems": count})


def no_context() -> Raw:
    """No context."""
    return Raw(b"{}")


class RecommendRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Ask for the best items for a user. An unknown user, or none, gets what is popular."""

    user: Id | None = None
    k: Annotated[int, Meta(ge=1, description="How many items.")] = 10
    context: Raw = msgspec.field(default_factory=no_context)
    exclude: Annotated[list[Id], at_most(Limits.exclude, "Items that must not be shown, beside those seen.")] = []
    where: Annotated[
        dict[str, Annotated[list[str | float | bool], Meta(min_length=1), at_most(Limits.where_values)]],
        Meta(description="Per attribute of the item the values that are wanted; an item has one of each."),
    ] = {}
    deadline_ms: Annotated[
        Milliseconds | None, Meta(description="When the answer is of use; late stages are left out.")
    ] = None
    explain: Annotated[bool, Meta(description="Say where every item comes from.")] = False
    log: Annotated[bool, Meta(description="Whether the slate is shown to somebody: log it as impressions.")] = True


class RankRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Ask for the order of your own items.

    Items that are unavailable or excluded are left out; those that the user has seen are not, and those that the
    service does not know are scored with missing features. The project's slate rules hold, but nothing is drawn and
    nothing added. Nothing is logged unless `log` says that the slate is shown.
    """

    items: Annotated[list[Id], at_most(Limits.items, "The items to rank; a repeated id counts once.")]
    user: Id | None = None
    k: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="How many of them to return; all by default.")] = (
        None
    )
    context: Raw = msgspec.field(default_factory=no_context)
    exclude: Annotated[list[Id], at_most(Limits.exclude)] = []
    deadline_ms: Milliseconds | None = None
    explain: bool = False
    log: Annotated[bool, Meta(description="Whether the slate is shown to somebody: log it as impressions.")] = False


class FeaturesRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Ask what is known now of a user, of items, or of the pairs of the user and each item."""

    user: Id | None = None
    items: list[Id] = []
    context: Raw = msgspec.field(default_factory=no_context)


class Ranked(msgspec.Struct, gc=False):
    """One item of a slate. `score` is the ranker's, comparable within this slate only; null where there was none.

    Items are in the order of the scores unless the project's slate rules say otherwise.
    """

    item: str
    score: float | None


class SlateAnswer(msgspec.Struct, omit_defaults=True):
    """Items, best first. `degraded` names stages that were left out or replaced by their defaults.

    `path` says what was known of who asks: nothing (popular), attributes or context (content), or what they did
    (history), of which at least so many `events`. Before anything is trained, the release is "untrained" and the path
    is popular.
    """

    request: str
    release: str
    items: list[Ranked]
    degraded: list[str]
    path: Annotated[str, Meta(pattern="^(popular|content|history)$")]
    events: int
    propensities: Annotated[
        list[float | None] | None,
        Meta(
            description="Only where a slate rule draws: the probability of each item at its place, in the order of the "
            "items; 1 where nothing was drawn, null where it was drawn for an earlier answer, which is given again."
        ),
    ] = None
    explanation: dict[str, Any] | None = None


class FeatureRow(msgspec.Struct):
    """What is known of one pair; null is missing. `lists` holds the features that are lists."""

    user: str | None
    item: str | None
    features: dict[str, float | None]
    lists: dict[str, list[str | float]]


class FeaturesAnswer(msgspec.Struct):
    """What is known `now` (ms UTC) from the events before `log_position`."""

    now: int
    log_position: int
    rows: list[FeatureRow]


class Error(msgspec.Struct, omit_defaults=True):
    """Why a request was refused. `code` is for programs, `message` for people, `request` is set on a 500."""

    code: str
    message: str
    request: str | None = None


class RefusedEvent(msgspec.Struct):
    """An event that was not accepted. `line` is its line, or its place in the array, from 1."""

    line: int
    reason: str


class EventsAnswer(msgspec.Struct, omit_defaults=True):
    """What became of the events: all that are accepted are durable, and visible in the next answer.

    `duplicates` had an id that is known already. Of the refused ones at most 1,000 are named. `log_position` is an
    offset that lies behind all that were accepted. `error` is set where none was.
    """

    accepted: int
    duplicates: int
    refused_count: int
    refused: list[RefusedEvent]
    log_position: int
    error: Error | None = None


class Health(msgspec.Struct):
    """How the service is. `problems` are for people: what is wrong now, and what the service does about it."""

    status: str
    release: str | None
    log_position: int
    features_position: int
    impressions_pending: int
    impressions_lost: int
    uptime_seconds: float
    problems: list[str]


class Ready(msgspec.Struct):
    """Whether requests can be answered; `waiting_for` says what is missing."""

    ready: bool
    waiting_for: list[str]


class ErrorAnswer(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: Error


class RefusedError(Exception):
    """A request that is not answered, with the HTTP status, the code and the reason."""

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers
        super().__init__(message)


encode = msgspec.json.Encoder().encode


def error_body(code: str, message: str, request: str | None = None) -> bytes:
    """The JSON of an error."""
    return encode(ErrorAnswer(Error(code, message, request)))
