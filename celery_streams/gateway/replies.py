"""Answers of the gateway, as ASGI messages with the headers every answer carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from celery_streams.gateway.problems import PROBLEM_JSON, Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Mapping[str, str]

#: Set in a request's scope once its answer has begun.
STARTED = "celery_streams.started"
#: In a request's scope, if the server can: breaks the connection, dropping what is unsent.
CUT_OFF = "celery_streams.cut_off"
#: In a request's scope, if the server can: sends a part of the answer that has begun, at once;
#: false if the client does not take it now.
WRITE = "celery_streams.write"
#: In a request's scope if the server has all the connections it takes: whether this one came
#: too late to be served.
FULL = "celery_streams.full"

#: On every answer: nothing is sniffed, framed or run as a page, whatever a client has written
#: into a stream (PROTOCOL 12.7).
SECURITY = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "cross-origin",
    "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}

_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
_REQUEST_HEADERS = ", ".join(
    (
        "authorization",
        "content-type",
        "if-none-match",
        "last-event-id",
        "producer-epoch",
        "producer-id",
        "producer-seq",
        "stream-closed",
        "stream-expires-at",
        "stream-fork-offset",
        "stream-fork-sub-offset",
        "stream-forked-from",
        "stream-seq",
        "stream-ttl",
    )
)
_RESPONSE_HEADERS = ", ".join(
    (
        "etag",
        "location",
        "producer-epoch",
        "producer-expected-seq",
        "producer-received-seq",
        "producer-seq",
        "retry-after",
        "stream-closed",
        "stream-cursor",
        "stream-earliest-offset",
        "stream-expires-at",
        "stream-next-offset",
        "stream-run-state",
        "stream-sse-data-encoding",
        "stream-ttl",
        "stream-up-to-date",
        "www-authenticate",
    )
)


class Replies:
    """Sends answers; knows which origins may read them."""

    def __init__(self, origins: Iterable[str]) -> None:
        everybody = "*" in (allowed := frozenset(origins))
        self._origins = frozenset() if everybody else allowed
        #: Answers begun so far, by method and status.
        self.begun: Counter[tuple[str, int]] = Counter()
        #: Bytes of whole answers' bodies.
        self.sent = 0
        self._always = _packed({**SECURITY, **(_open_to("*") if everybody else {})})

    async def start(self, scope: Scope, send: Send, status: int, headers: Headers) -> None:
        """The status and the headers; a body follows."""
        scope[STARTED] = True
        self.begun[scope["method"], status] += 1
        every = [*self._always, *_packed(headers)]
        if self._origins:
            every += self._cors(scope)
        await send({"type": "http.response.start", "status": status, "headers": every})

    async def reply(
        self, scope: Scope, send: Send, status: int, headers: Headers, body: bytes = b""
    ) -> None:
        """A whole answer."""
        bodiless = status in (204, 304)
        size = {} if bodiless else {"content-length": str(len(body))}
        await self.start(scope, send, status, {**headers, **size})
        content = b"" if bodiless or scope["method"] == "HEAD" else body
        self.sent += len(content)
        await send({"type": "http.response.body", "body": content})

    async def reply_in_pieces(
        self, scope: Scope, send: Send, status: int, headers: Headers, pieces: Sequence[bytes]
    ) -> None:
        """A whole answer with a body, which is not made one first."""
        size = sum(map(len, pieces))
        await self.start(scope, send, status, {**headers, "content-length": str(size)})
        self.sent += size
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def refuse(self, scope: Scope, send: Send, problem: Problem) -> None:
        """The problem as a document."""
        headers = {"content-type": PROBLEM_JSON, "cache-control": "no-store", **problem.headers}
        await self.reply(scope, send, problem.status, headers, problem.body())

    def last_words(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The problem as the last answer on a connection that has sent no request to answer.

        ``headers`` are the server's own.
        """
        self.begun["-", problem.status] += 1
        body = problem.body()
        every = {
            "content-type": PROBLEM_JSON,
            "cache-control": "no-store",
            **problem.headers,
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = b"".join(
            b"%b: %b\r\n" % header for header in (*headers, *self._always, *_packed(every))
        )
        return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (
            problem.status,
            problem.title.encode(),
            lines,
            body,
        )

    async def preflight(self, scope: Scope, send: Send) -> None:
        """What a browser asks before a request from another origin."""
        headers = {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _REQUEST_HEADERS,
            "access-control-max-age": "86400",
        }
        await self.reply(scope, send, 204, headers)

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = next((v for k, v in scope["headers"] if k == b"origin"), b"").decode("latin-1")
        return _packed({"vary": "origin", **(_open_to(origin) if origin in self._origins else {})})


def _open_to(origin: str) -> Headers:
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": _RESPONSE_HEADERS,
    }


def _packed(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
