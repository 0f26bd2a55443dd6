"""The OpenAPI 3.1 description, made from the structs that are decoded and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shortlist.serving.messages import (
    ErrorAnswer,
    EventsAnswer,
    FeaturesAnswer,
    FeaturesRequest,
    Health,
    RankRequest,
    Ready,
    RecommendRequest,
    SlateAnswer,
)

REF = "#/components/schemas/{name}"
REASONS = {
    400: "The body is no JSON, or the request is no HTTP.",
    404: "There is nothing at this path.",
    405: "This path wants another method; the header Allow names it.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body has a content-encoding.",
    422: "The body is JSON but not what this route takes; the message names the field.",
    431: "The head is too large.",
    500: "Unexpected failure; `request` is the id under which the service's log has the details.",
    503: "Not ready yet: state or release are being loaded, or the log cannot be written.",
}


@dataclass(frozen=True)
class Operation:
    """One route in words. `answers` maps a status to its struct, or to a media type where the answer is no JSON."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, Any]
    request: Any = None
    failures: Sequence[int] = (405, 408, 431, 500)
    example: Mapping[str, Any] = field(default_factory=dict)


ASKING = (400, 405, 408, 413, 415, 422, 431, 500, 503)


def operations(events: Any) -> list[Operation]:
    """Every route. `events` is the type of one accepted event."""
    user = {"user": "ann"}
    return [
        Operation(
            "POST", "/recommend", "The best items for a user", {200: SlateAnswer}, RecommendRequest, ASKING,
            {**user, "k": 10},
        ),
        Operation(
            "POST", "/rank", "The order of your own items", {200: SlateAnswer}, RankRequest, ASKING,
            {**user, "items": ["a", "b", "c"]},
        ),
        Operation("POST", "/events", EVENTS, {200: EventsAnswer, 422: EventsAnswer}, events, ASKING),
        Operation(
            "POST", "/features", "What is known now of a user, of items, or of pairs", {200: FeaturesAnswer},
            FeaturesRequest, ASKING, {**user, "items": ["a"]},
        ),
        Operation("GET", "/health", "How the service is; 200 as long as it runs", {200: Health}),
        Operation("GET", "/ready", "Whether it answers: 503 while state and release load", {200: Ready, 503: Ready}),
        Operation("GET", "/metrics", "Everything that is counted, for Prometheus", {200: "text/plain"}),
        Operation("GET", "/openapi.json", "This description", {200: "application/json"}),
        Operation("GET", "/docs", "This description, to read", {200: "text/html"}),
        Operation("GET", "/", "The release, its report and a form to try", {200: "text/html"}),
    ]  # fmt: skip


EVENTS = (
    "Tell what happened: one JSON object, an array of them, or JSON lines. 200 when at least one is accepted (or was "
    "known already): those are durable and change the next answer; the others are in `refused`. 422 when none is."
)


def describe(title: str, version: str, event: Any, context: Any) -> dict[str, Any]:
    """The whole description. `event` is the type of one accepted event, `context` the struct of a request's context."""
    routes = operations(event)
    types = [kind for route in routes for kind in (*route.answers.values(), route.request) if _is_type(kind)]
    _, schemas = msgspec.json.schema_components([*types, ErrorAnswer, context], ref_template=REF)
    context_ref = {"$ref": REF.format(name=context.__name__)}
    for asking in (RecommendRequest, RankRequest, FeaturesRequest):
        schemas[asking.__name__]["properties"]["context"] = context_ref
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": "Every refusal has the body of `ErrorAnswer`. Unknown paths answer 404, wrong methods 405.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _is_type(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, str)


def _operation(route: Operation) -> dict[str, Any]:
    responses = {str(status): _response(status, kind) for status, kind in route.answers.items()}
    failures = {str(status): _response(status, ErrorAnswer) for status in route.failures if status not in route.answers}
    described: dict[str, Any] = {
        "summary": route.summary.split(":")[0],
        "description": route.summary,
        "operationId": route.path.strip("/").replace(".", "_") or "home",
        "responses": {**responses, **failures},
    }
    if route.request is not None:
        content: dict[str, Any] = {"schema": _schema(route.request)}
        if route.example:
            content["example"] = dict(route.example)
        media = {"application/json": content}
        if route.path == "/events":
            one = _schema(route.request)
            media = {
                "application/json": {"schema": {"anyOf": [one, {"type": "array", "items": one}]}},
                "application/x-ndjson": {"schema": {"type": "string", "description": "One event a line."}},
            }
        described["requestBody"] = {"required": True, "content": media}
    return described


def _response(status: int, kind: Any) -> dict[str, Any]:
    text = REASONS.get(status, "Done.") if status != 200 else "Done."
    if isinstance(kind, str):
        return {"description": text, "content": {kind: {"schema": {"type": "string"}}}}
    return {"description": text, "content": {"application/json": {"schema": _schema(kind)}}}


def _schema(kind: Any) -> dict[str, Any]:
    schemas, _ = msgspec.json.schema_components([kind], ref_template=REF)
    return schemas[0]
