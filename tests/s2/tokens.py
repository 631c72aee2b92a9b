"""S2's access tokens in front of s2-lite, which has none: minted, scoped, expiring, revoked."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from s2_sdk import Compression
from s2_sdk._generated.s2.v1 import s2_pb2
from s2_sdk._s2s._protocol import Message, frame_message, read_messages

from tests.s2.http2 import Answer, Connection, Request
from tests.s2.servers import BASIN, S2Lite

#: The account's own token, which may do everything.
ACCOUNT = "the-accounts-token"
_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass(slots=True)
class Token:
    """What was asked for with POST /access-tokens."""

    id: str
    secret: str = field(repr=False)
    scope: dict[str, Any]
    expires_at: float | None

    def refuses(self, basin: str, stream: str | None, operations: set[str]) -> str | None:
        """Why it does not allow a request; ``None`` if it does."""
        for what, name in (("basins", basin), ("streams", stream)):
            if name is not None and not _matches(self.scope.get(what), name):
                return f"{what} does not include {name}"
        if missing := operations - set(self.scope.get("ops") or ()):
            return f"operation not permitted: {', '.join(sorted(missing))}"
        return None


class TokenServer:
    """Enforces access tokens and forwards the rest; a context manager, usable from sync tests.

    ``minted`` counts mints by stream name; ``requests`` what was asked, by operation, each append
    of a session for itself.
    """

    def __init__(self, target: S2Lite) -> None:
        self.target = target
        self.port = 0
        self.tokens: dict[str, Token] = {}  # by secret
        self.minted: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.expired: list[str] = []
        self._throttled: dict[str, tuple[int, float]] = {}
        self.throttled_at: list[tuple[str, float]] = []
        self._lost: Counter[str] = Counter()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.held = 0
        self.slow = 0.0  #: seconds that each request takes besides
        self.sessions = self.open_sessions = 0
        self.asked_at: list[tuple[str, float]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.connections: set[Connection] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, **options: str) -> str:
        """The store URL of whoever holds the account's token."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"s2://{ACCOUNT}@{BASIN}?endpoint={self.endpoint}&{query}"

    # -- faults ---------------------------------------------------------------------------

    def revoke_all(self) -> int:
        """As the account's owner would, in S2's console."""
        count = len(self.tokens)
        self.tokens.clear()
        return count

    def expire_all(self) -> None:
        """Their time is over."""
        for token in self.tokens.values():
            token.expires_at = time.time() - 1

    def throttle(self, operation: str, times: int, pause: float) -> None:
        """Answer the next requests for ``operation`` with 429 and how long to pause."""
        self._throttled[operation] = (times, pause)

    def lose_answers(self, operation: str, times: int = 1) -> None:
        """Let the next requests through, and cut the connection instead of answering."""
        self._lost[operation] += times

    def hold(self) -> None:
        """Keep the records that come in sessions from now on; ``held`` says how many."""
        self.held = 0
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def let_go(self) -> None:
        """Go on with them, as things are now."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    # -- the server -----------------------------------------------------------------------

    async def _handle(self, request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        await asyncio.sleep(self.slow)
        if path.startswith("/v1/access-tokens"):
            return self._control(request, path, query)
        if request.is_session:
            return self._open_session(request, path)
        operations, stream = _meaning(request, path)
        name = min(operations)
        self.requests[name] += 1
        self.asked_at.append((name, time.monotonic()))
        if (refused := self._refusal(request, operations, stream)) is not None:
            self.refused[name] += 1
            return refused
        if (throttled := self._throttle(name)) is not None:
            return throttled
        answer = await self._forward(request)
        if self._lost[name] > 0:
            self._lost[name] -= 1
            return Answer(0)
        return answer

    def _open_session(self, request: Request, path: str) -> Answer:
        refused = self._refusal(request, *_meaning(request, path)) or self._throttle("append")
        if refused is not None:
            self.requests["append"] += 1
            self.refused["append"] += refused.status != 429
            return refused
        return Answer(200, {"content-type": "s2s/proto"}, self._session(request))

    async def _session(self, request: Request) -> AsyncIterator[bytes]:
        """Appends in order, up to the first that is refused; each has its token looked at."""
        assert request.pieces is not None
        pieces = request.pieces
        come: asyncio.Queue[Message | None] = asyncio.Queue()

        async def receive() -> None:
            async for message in read_messages(_all_of(pieces)):
                if not self._flowing.is_set():
                    self.held += len(_decoded(message.body).records)
                come.put_nowait(message)
            come.put_nowait(None)

        headers = {**request.headers, "content-type": "application/x-protobuf"}
        headers["accept"] = "application/x-protobuf"
        receiving = asyncio.create_task(receive())
        self.sessions += 1
        self.open_sessions += 1
        try:
            while (message := await come.get()) is not None:
                await self._flowing.wait()
                answer = await self._handle(Request("POST", request.path, headers, message.body))
                assert isinstance(answer.body, bytes)
                if answer.status == 0:
                    raise ConnectionAbortedError
                refused = answer.status != 200
                said = answer.status.to_bytes(2, "big") + answer.body if refused else answer.body
                yield frame_message(Message(said, refused, Compression.NONE))
                if refused:
                    return
        finally:
            receiving.cancel()
            self.open_sessions -= 1

    def _throttle(self, operation: str) -> Answer | None:
        times, pause = self._throttled.get(operation, (0, 0.0))
        if times <= 0:
            return None
        self._throttled[operation] = (times - 1, pause)
        self.throttled_at.append((operation, time.monotonic()))
        answer = _problem(429, "rate_limited", "too many requests")
        answer.headers["retry-after-ms"] = str(int(pause * 1000))
        return answer

    def _refusal(self, request: Request, operations: set[str], stream: str | None) -> Answer | None:
        secret = request.headers.get("authorization", "").removeprefix("Bearer ")
        if secret == ACCOUNT:
            return None
        token = self.tokens.get(secret)
        if token is None:
            return _problem(401, "authn", "unknown or revoked access token")
        if token.expires_at is not None and (over := time.time() - token.expires_at) >= 0:
            self.expired.append(f"{token.id}, {over:.3f} s after its time")
            return _problem(401, "authn", "the access token has expired")
        why = token.refuses(request.headers.get("s2-basin", ""), stream, operations)
        return _problem(403, "permission_denied", why) if why else None

    def _control(self, request: Request, path: str, query: str) -> Answer:
        operation = {"POST": "issue-access-token", "DELETE": "revoke-access-token"}.get(
            request.method, "list-access-tokens"
        )
        self.requests[operation] += 1
        self.asked_at.append((operation, time.monotonic()))
        if request.headers.get("authorization") != f"Bearer {ACCOUNT}":
            return _problem(403, "permission_denied", f"operation not permitted: {operation}")
        if (throttled := self._throttle(operation)) is not None:
            return throttled
        if request.method == "POST":
            return self._issue(json.loads(request.body))
        if request.method == "DELETE":
            wanted = unquote(path.rpartition("/")[2])
            for secret, token in list(self.tokens.items()):
                if token.id == wanted:
                    del self.tokens[secret]
                    return Answer(204)
            return _problem(404, "access_token_not_found", "no such access token")
        prefix = parse_qs(query).get("prefix", [""])[0]
        found = [each for each in self.tokens.values() if each.id.startswith(prefix)]
        return _json(
            200,
            {
                "access_tokens": [
                    {"id": each.id, "scope": each.scope, "auto_prefix_streams": False}
                    for each in sorted(found, key=lambda each: each.id)
                ],
                "has_more": False,
            },
        )

    def _issue(self, asked: dict[str, Any]) -> Answer:
        token_id, scope = asked["id"], asked["scope"]
        if not 1 <= len(token_id.encode()) <= 96:
            return _problem(422, "invalid", "an id has 1 to 96 bytes")
        if any(each.id == token_id for each in self.tokens.values()):
            return _problem(409, "resource_already_exists", "the id is taken")
        if asked.get("auto_prefix_streams") and "prefix" not in (scope.get("streams") or {}):
            return _problem(422, "invalid", "auto_prefix_streams needs a prefix as the scope")
        expires_at = asked.get("expires_at")
        token = Token(
            token_id,
            secrets.token_urlsafe(24),
            scope,
            datetime.fromisoformat(expires_at).timestamp() if expires_at else None,
        )
        self.tokens[token.secret] = token
        self.minted[(scope.get("streams") or {}).get("exact", "")] += 1
        return _json(201, {"access_token": token.secret})

    async def _forward(self, request: Request) -> Answer:
        headers = {
            name: value
            for name, value in request.headers.items()
            if not name.startswith(":") and name not in _HOP | {"authorization"}
        }
        url = httpx.URL(self.target.endpoint).copy_with(raw_path=request.path.encode())
        outgoing = self._client.build_request(
            request.method, url, headers=headers, content=request.body or None
        )
        try:
            answer = await self._client.send(outgoing, stream=True)
        except httpx.TransportError:
            return _problem(503, "unavailable", "s2-lite does not answer")
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
        if answer.headers.get("content-type", "").startswith("s2s/"):
            return Answer(answer.status_code, kept, _streamed(answer))
        try:
            body = b"".join([piece async for piece in answer.aiter_raw()])
            return Answer(answer.status_code, kept, body)
        except httpx.TransportError:
            return Answer(0)
        finally:
            await answer.aclose()

    # -- its life -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(30, read=None), limits=limits)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self._handle)
        self.connections.add(connection)
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)

    async def _stop(self) -> None:
        self._server.close()
        for connection in list(self.connections):
            connection.cut()
        await self._client.aclose()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _all_of(pieces: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (piece := await pieces.get()) is not None:
        yield piece


async def _streamed(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _meaning(request: Request, path: str) -> tuple[set[str], str | None]:
    """The operations a request needs, and the stream it is about."""
    parts = urlsplit(path).path.strip("/").split("/")
    if len(parts) < 3 or parts[1] != "streams":
        return {"other"}, None
    stream = unquote(parts[2])
    match request.method, parts[3:]:
        case "GET", ["records", "tail"]:
            return {"check-tail"}, stream
        case "GET", ["records"]:
            return {"read"}, stream
        case "POST", ["records"]:
            return {"append"} | _commands(request.body), stream
        case "PUT", []:
            return {"create-stream"}, stream
        case "DELETE", []:
            return {"delete-stream"}, stream
    return {"other"}, stream


def _decoded(body: bytes) -> s2_pb2.AppendInput:
    given = s2_pb2.AppendInput()
    given.ParseFromString(body)
    return given


def _commands(body: bytes) -> set[str]:
    return {
        record.headers[0].value.decode()
        for record in _decoded(body).records
        if len(record.headers) == 1 and not record.headers[0].name
    }


def _matches(scope: dict[str, str] | None, name: str) -> bool:
    if not scope:
        return False
    if "exact" in scope:
        return scope["exact"] == name
    return name.startswith(scope["prefix"])


def _problem(status: int, code: str, message: str) -> Answer:
    return _json(status, {"code": code, "message": message})


def _json(status: int, body: Any) -> Answer:
    return Answer(status, {"content-type": "application/json"}, json.dumps(body).encode())
