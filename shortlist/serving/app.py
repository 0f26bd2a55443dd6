"""The HTTP shell: routes, bodies within their limit, and every failure as a JSON answer with its reason."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shortlist.framing.problems import nearest
from shortlist.serving.messages import RefusedError, error_body
from shortlist.serving.metrics import Metrics

logger = logging.getLogger(__name__)

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: status, body and media type."""

    body: bytes
    status: int = 200
    media: bytes = JSON
    headers: tuple[Header, ...] = ()


Handler = Callable[[bytes], Awaitable[Answer]]


class DisconnectedError(Exception):
    """The client went away before its request was complete."""


class RequestIds(Protocol):
    """Gives every request its id."""

    def __call__(self) -> str:
        """An id that no other request has, in this process or another."""


async def read_body(headers: Sequence[Header], receive: Receive, limit: int) -> bytes:
    """The whole body. Raises RefusedError (413) as soon as it is known to be too large, before reading on."""
    for name, value in headers:
        if name == b"content-length" and int(value) > limit:
            raise too_large(limit)
        if name == b"content-encoding" and value.lower() != b"identity":
            raise RefusedError(415, "unsupported_encoding", "send the body without a content-encoding")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(body) <= limit:
        return body
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])


def too_large(limit: int) -> RefusedError:
    """The refusal of a body that is larger than `limit` bytes."""
    return RefusedError(413, "body_too_large", f"the body is larger than {limit} bytes; send it in parts")


class Endpoint:
    """One route as an ASGI application: body in, answer out, failures as JSON, everything counted."""

    def __init__(self, route: str, handler: Handler, limit: int, metrics: Metrics, ids: RequestIds) -> None:
        self.route, self.handler, self.limit, self.metrics, self.ids = route, handler, limit, metrics, ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        try:
            body = await read_body(scope["headers"], receive, self.limit) if scope["method"] == "POST" else b""
            answer = await self.handler(body)
        except RefusedError as refused:
            answer = Answer(error_body(refused.code, refused.message), refused.status, headers=refused.headers)
        except DisconnectedError:
            return
        except Exception:
            answer = self._unexpected()
        self.metrics.answered(self.route, answer.status, time.perf_counter() - started)
        await respond(answer, send)

    def _unexpected(self) -> Answer:
        request = self.ids()
        logger.exception("request %s to %s failed", request, self.route)
        message = f"unexpected failure; the service's log has the details under {request}"
        return Answer(error_body("internal", message, request), 500)


async def respond(answer: Answer, send: Send) -> None:
    """Send an answer."""
    headers = [(b"content-type", answer.media), (b"content-length", b"%d" % len(answer.body)), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


@dataclass(frozen=True)
class Routed:
    """A handler and where it is found."""

    method: str
    path: str
    handler: Handler


class Lifecycle(Protocol):
    """What the application starts before it listens, and stops when the last request is answered."""

    async def start(self) -> None:
        """Begin; returns before everything is loaded."""

    async def stop(self) -> None:
        """Finish what was accepted."""


class Direct:
    """The ASGI application: a known method and path go to their endpoint at once, whatever else there is to `beyond`.

    Looking a route up one after the other, inside layers that catch what endpoints catch themselves, would be half of
    a small answer.
    """

    def __init__(self, endpoints: Mapping[tuple[str, str], ASGIApp], beyond: ASGIApp) -> None:
        self.endpoints, self.beyond = endpoints, beyond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or whatever else the server wants."""
        asked = (scope["method"], scope["path"]) if scope["type"] == "http" else ("", "")
        await self.endpoints.get(asked, self.beyond)(scope, receive, send)


def application(
    routes: Sequence[Routed], lifecycle: Lifecycle, limit: int, metrics: Metrics, ids: RequestIds
) -> ASGIApp:
    """The ASGI application. Unknown paths and wrong methods are answered in JSON too."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.stop()

    paths = [routed.path for routed in routes]

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path[:200]
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            body = error_body("method_not_allowed", f"{request.method} is not allowed here; use {allowed}")
        else:
            body = error_body("not_found", f"there is nothing at {path!r}; {nearest(path, paths)}")
        metrics.answered("other", error.status_code, 0.0)
        return Response(body, error.status_code, dict(error.headers or {}), media_type="application/json")

    endpoints = {
        (routed.method, routed.path): Endpoint(routed.path, routed.handler, limit, metrics, ids) for routed in routes
    }
    starlette = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )
    starlette.router.redirect_slashes = False
    return Direct(endpoints, starlette)
