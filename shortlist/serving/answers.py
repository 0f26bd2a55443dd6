"""What each route answers: bodies decoded and checked, the work done, answers encoded."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import LogError, Receipt
from shortlist.features.request import RequestFeatureError
from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.runner import Pipeline
from shortlist.serving.app import HTML, Answer, Routed
from shortlist.serving.impressions import SAMPLED, UNLOGGED
from shortlist.serving.messages import (
    Error,
    EventsAnswer,
    FeatureRow,
    FeaturesAnswer,
    FeaturesRequest,
    Health,
    Ranked,
    RankRequest,
    Ready,
    RecommendRequest,
    RefusedError,
    RefusedEvent,
    SlateAnswer,
    encode,
)
from shortlist.serving.openapi import describe
from shortlist.serving.pages import page
from shortlist.serving.paths import POPULAR
from shortlist.serving.recommend import Champion
from shortlist.serving.service import Live, Service
from shortlist.serving.types import context_type, event_types
from shortlist.serving.where import checked_where

Message = TypeVar("Message")

LARGE_BODY = 64 * 1024
"""Bytes of events from which on they are checked beside the event loop."""
NAMED_REFUSALS = 1_000
FEATURE_ROWS = 1_000
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


def now_ms() -> int:
    """Now, in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


class Answers:
    """The handlers of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.limits = service.limits
        self.recommending = msgspec.json.Decoder(RecommendRequest)
        self.ranking = msgspec.json.Decoder(RankRequest)
        self.asking = msgspec.json.Decoder(FeaturesRequest)
        self.context = msgspec.json.Decoder(context_type(service.project))
        self.openapi_body: bytes | None = None

    def routes(self) -> list[Routed]:
        """Every route of the service."""
        return [
            Routed("POST", "/rank", self.rank),
            Routed("POST", "/recommend", self.recommend),
            Routed("POST", "/events", self.events),
            Routed("POST", "/features", self.features),
            Routed("GET", "/health", self.health),
            Routed("GET", "/ready", self.ready),
            Routed("GET", "/metrics", self.metrics),
            Routed("GET", "/openapi.json", self.openapi),
            Routed("GET", "/docs", self.docs),
            Routed("GET", "/", self.home),
        ]

    async def recommend(self, body: bytes) -> Answer:
        """`POST /recommend`."""
        begun, request = time.perf_counter(), decode(self.recommending, body)
        self._check_k(request.k)
        query, champion, cache = self._query(request, request.k, None, begun), self._champion(), self.service.cache
        kept = cache.find(champion.version, query) if cache is not None else None
        if kept is None:
            return await self._slate("recommend", champion.recommend, query)
        self._live().impressions.observe(query, *kept)
        self.service.metrics.slate("recommend", not kept[0].items)
        return Answer(encode(slate_answer(kept[0])))

    async def rank(self, body: bytes) -> Answer:
        """`POST /rank`."""
        begun, request = time.perf_counter(), decode(self.ranking, body)
        check_length("items", request.items, self.limits.items)
        items = tuple(dict.fromkeys(request.items))
        if request.k is not None:
            self._check_k(request.k)
        query = self._query(request, request.k or len(items), items, begun)
        return await self._slate("rank", self._champion().rank, query)

    async def events(self, body: bytes) -> Answer:
        """`POST /events`."""
        live = self._live()
        if not body or body.isspace():
            raise RefusedError(400, "malformed_json", "the body is empty; send one JSON event, an array, or JSON lines")
        loop = asyncio.get_running_loop()
        try:
            if len(body) > LARGE_BODY:
                submitted = await loop.run_in_executor(self.service.checking, live.log.submit, body)
            else:
                submitted = live.log.submit(body)
            receipt = await asyncio.wrap_future(submitted)
        except LogError as error:
            raise RefusedError(503, "log_unavailable", f"nothing was accepted: {error}") from error
        return self._receipt(receipt)

    async def features(self, body: bytes) -> Answer:
        """`POST /features`."""
        live, request = self._live(), decode(self.asking, body)
        check_length("items", request.items, FEATURE_ROWS)
        if request.user is None and not request.items:
            raise invalid("name a `user`, `items`, or both")
        return Answer(encode(self._known(live, request, now_ms())))

    async def health(self, _: bytes) -> Answer:
        """`GET /health`."""
        service = self.service
        live, champion = service.live, service.champion
        problems = list(service.problems.values())
        if live is not None and live.impressions.lost:
            problems.append(f"{live.impressions.lost} impressions were lost; the log could not take them in time")
        status = "ok" if not problems and not service.waiting_for() else "starting" if not problems else "degraded"
        return Answer(
            encode(
                Health(
                    status=status,
                    release=champion.version if champion else None,
                    log_position=live.log.position if live else 0,
                    features_position=live.table.position if live else 0,
                    impressions_pending=service.pending_impressions,
                    impressions_lost=live.impressions.lost if live else 0,
                    uptime_seconds=round(time.monotonic() - service.begun, 1),
                    problems=problems,
                )
            )
        )

    async def ready(self, _: bytes) -> Answer:
        """`GET /ready`."""
        missing = self.service.waiting_for()
        return Answer(encode(Ready(not missing, missing)), 503 if missing else 200)

    async def metrics(self, _: bytes) -> Answer:
        """`GET /metrics`."""
        return Answer(self.service.metrics.text(), media=PROMETHEUS)

    async def openapi(self, _: bytes) -> Answer:
        """`GET /openapi.json`."""
        if self.openapi_body is None:
            from shortlist import __version__

            project = self.service.project
            described = describe(project.name, __version__, event_types(project), context_type(project))
            self.openapi_body = encode(described)
        return Answer(self.openapi_body)

    async def docs(self, _: bytes) -> Answer:
        """`GET /docs`."""
        return Answer(page("docs", {}), media=HTML)

    async def home(self, _: bytes) -> Answer:
        """`GET /`."""
        project, champion = self.service.project, self.service.champion
        kinds = [
            {
                "kind": schema.kind,
                "keys": [key.name for key in schema.keys],
                "fields": {name: type_text(declared) for name, declared in schema.fields.items()},
            }
            for schema in project.schemas
        ]
        data = {
            "project": project.name,
            "user": project.user.name,
            "item": project.item.name,
            "release": champion.report if champion else None,
            "kinds": kinds,
        }
        return Answer(page("home", data), media=HTML)

    def _live(self) -> Live:
        if self.service.live is None:
            raise self._not_ready()
        return self.service.live

    def _champion(self) -> Champion:
        if self.service.champion is None:
            raise self._not_ready()
        return self.service.champion

    def _not_ready(self) -> RefusedError:
        missing = "; ".join(self.service.waiting_for())
        return RefusedError(503, "not_ready", f"not ready: waiting for {missing}", ((b"retry-after", b"1"),))

    def _check_k(self, k: int) -> None:
        if k > self.limits.k:
            raise invalid(f"k is {k}; at most {self.limits.k} - at `$.k`")

    def _query(
        self, request: RecommendRequest | RankRequest, k: int, items: tuple[str, ...] | None, begun: float
    ) -> Query:
        settings, constraints = self.service.settings, self.service.project.constraints
        check_length("excluded items", request.exclude, self.limits.exclude, "exclude")
        within_ms = request.deadline_ms or settings.deadline_ms or constraints.deadline_ms
        query = Query(
            user=request.user,
            k=k,
            now=now_ms(),
            request=self.service.request_id(),
            deadline=Deadline(begun + within_ms / 1000),
            context=self._context(request.context),
            items=items,
            exclude=frozenset(request.exclude),
            where=self._where(request),
            explain=request.explain,
        )
        if not request.log:
            query.learn(UNLOGGED, True)
        elif self._live().impressions.draws(query.request):
            query.learn(SAMPLED, True)
        return query

    def _where(self, request: RecommendRequest | RankRequest) -> Mapping[str, tuple[Any, ...]]:
        if isinstance(request, RankRequest) or not request.where:
            return {}
        for name, wanted in request.where.items():
            check_length(f"values of {name!r}", wanted, self.limits.where_values, f"where.{name}")
        return checked_where(self.service.project.item, request.where)

    def _context(self, raw: msgspec.Raw) -> Mapping[str, Any]:
        body = bytes(raw)
        if body == b"{}":
            return {}
        if len(body) > self.limits.context_bytes:
            raise invalid(f"the context has {len(body)} bytes; at most {self.limits.context_bytes} - at `$.context`")
        values = msgspec.structs.asdict(decode(self.context, body, "context"))
        return {name: value for name, value in values.items() if value is not None}

    async def _slate(self, kind: str, pipeline: Pipeline, query: Query) -> Answer:
        slate = await self.service.turns.slate(pipeline, query)
        self.service.metrics.slate(kind, not slate.items)
        return Answer(encode(slate_answer(slate)))

    def _receipt(self, receipt: Receipt) -> Answer:
        self.service.metrics.received(receipt.accepted, receipt.duplicates, len(receipt.refusals))
        answer = EventsAnswer(
            accepted=receipt.accepted,
            duplicates=receipt.duplicates,
            refused_count=len(receipt.refusals),
            refused=[RefusedEvent(refusal.line, refusal.reason) for refusal in receipt.refusals[:NAMED_REFUSALS]],
            log_position=receipt.position,
        )
        if receipt.accepted or receipt.duplicates or not receipt.refusals:
            return Answer(encode(answer))
        first = receipt.refusals[0]
        answer.error = Error("events_refused", f"no event was accepted; line {first.line}: {first.reason}")
        return Answer(encode(answer), 422)

    def _known(self, live: Live, request: FeaturesRequest, now: int) -> FeaturesAnswer:
        project, table = self.service.project, live.table
        ids: dict[str, Sequence[str]] = {}
        if request.user is not None:
            ids[project.user.name] = [request.user]
        if request.items:
            ids[project.item.name] = request.items
        readable = self.service.features.readable(ids)
        try:
            columns = table.read(ids, now, self._context(request.context), readable)
        except RequestFeatureError as error:  # the project's own function does not take what this request holds
            raise RefusedError(422, "request_feature_failed", str(error)) from error
        rows = []
        for place, item in enumerate(request.items or [None]):
            features = {name: plain(float(columns[name][place])) for name in columns.names}
            lists = {name: listed(table, name, values[place]) for name, values in columns.lists.items()}
            rows.append(FeatureRow(request.user, item, features, lists))
        return FeaturesAnswer(now, columns.position, rows)


def decode(decoder: msgspec.json.Decoder[Message], body: bytes, inside: str = "") -> Message:
    """The message in a body. Raises RefusedError: 400 where it is no JSON, 422 where it is not what is expected."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(f"{error}{f' in {inside}' if inside else ''}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, "malformed_json", f"the body is no JSON: {error}") from error


def invalid(message: str) -> RefusedError:
    """The refusal of JSON that says what cannot be."""
    return RefusedError(422, "invalid", message)


def check_length(what: str, values: Sequence[Any], most: int, field: str = "items") -> None:
    """Raises RefusedError where a list in a request is longer than a service can look through while others wait."""
    if len(values) > most:
        raise invalid(f"{len(values)} {what}; at most {most} - at `$.{field}`")


def listed(table: FeatureTable, name: str, values: NDArray[Any]) -> list[str | float]:
    """A list feature's values of one row, without the empty places; strings by their text."""
    if values.dtype == np.float64:
        numbers: list[str | float] = values[np.isfinite(values)].tolist()
        return numbers
    return [text for text in table.text(name, values[values != 0]) if text is not None]


def slate_answer(slate: Slate) -> SlateAnswer:
    """The answer that a slate becomes."""
    items = list(map(Ranked, slate.items, slate.scores))
    explanation = None if slate.explanation is None else dict(slate.explanation)
    path = slate.path or POPULAR  # where there was no time to learn it, there was none for more than the last resort
    degraded, said = list(slate.degraded), slate.propensities
    propensities = None if said.count(1.0) == len(said) else list(said)  # most answers hold no draw: they stay small
    return SlateAnswer(slate.request, slate.release, items, degraded, path, slate.events, propensities, explanation)


def plain(value: float) -> float | None:
    """A number for JSON: None where it is missing or not finite."""
    return value if math.isfinite(value) else None


def type_text(declared: Any) -> str:
    """A declared field type as it is written."""
    return declared.__name__ if isinstance(declared, type) and not hasattr(declared, "__args__") else str(declared)
