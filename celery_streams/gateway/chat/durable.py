"""One answer as a Durable Stream of its own, which ends with its turn: read-only.

It is a view of the session's ``out`` stream, and has its offsets: the chunks of one turn that
the AI SDK knows. Offset 0 stands for the beginning of the answer, wherever in ``out`` that is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from celery_streams.contracts import JSON
from celery_streams.errors import OffsetGone
from celery_streams.gateway import wire
from celery_streams.gateway.chat.answers import Answer
from celery_streams.gateway.endpoint import as_problem
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Replies, Scope, Send
from celery_streams.gateway.requests import headers_of, query_of
from celery_streams.settings import StreamsSettings

#: Bytes of one answer to a read that does not wait.
_PAGE = 4 * 1024 * 1024
#: Digits of an offset.
_LONGEST_OFFSET = 16
#: Seconds that a client has to take a part of the answer.
_PATIENCE = 60.0

Open = Callable[[str, int, int], Answer]
#: Runs what answers a live read, for as long as its client is there.
Watched = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a client asks for: which answer, from where, and how."""

    reply: str
    start: int
    offset: int
    live: str | None = None
    cursor: str | None = None
    #: The client wants only what comes from now on.
    now: bool = False
    #: The client has been told that nothing follows. An ``EventSource`` comes back even so.
    told: bool = False


def address(reply: str, start: int, token: str | None) -> str:
    """The query of an answer's URL."""
    fields = {"message": reply, "from": str(start), **({"token": token} if token else {})}
    return urlencode(fields, quote_via=quote)


def parse_reading(scope: Scope) -> Reading:
    """The query of a read. Raises :class:`Problem` (400)."""
    query = query_of(scope)
    reply, start = query.get("message"), query.get("from", "0")
    if not reply or not (start.isascii() and start.isdigit() and len(start) <= _LONGEST_OFFSET):
        raise Problem(400, "invalid-answer", "name an answer by its URL, as this server gave it")
    live, offset = query.get("live"), query.get("offset")
    if live not in (None, "sse", "long-poll"):
        raise Problem(400, "invalid-live", "live is 'sse' or 'long-poll'")
    resumed = headers_of(scope).get("last-event-id") if live == "sse" else None
    if live is not None and offset is None and resumed is None:
        raise Problem(400, "missing-offset", "a live read needs an offset")
    told = False
    if resumed:
        begin, told = wire.parse_event_id(resumed)
    else:
        begin = wire.parse_offset(offset or "-1")
    now = begin == "now"
    position = 0 if isinstance(begin, str) else begin
    return Reading(reply, int(start), position, live, query.get("cursor"), now, told)


class AnswerStream:
    """Answers reads of answers."""

    def __init__(self, replies: Replies, settings: StreamsSettings) -> None:
        self._replies = replies
        self._settings = settings

    async def read(
        self, scope: Scope, send: Send, reading: Reading, follow: Open, watched: Watched
    ) -> None:
        """Answer a ``GET`` or ``HEAD``.

        ``follow`` opens the answer that ``reading`` names. ``watched`` is for live reads.

        Raises:
            Problem: 404 for what is no answer here, 410 for one that was trimmed.
        """
        answer = follow(reading.reply, reading.start, reading.offset)
        try:
            skip = reading.now or scope["method"] == "HEAD"
            chunks, at_tail = await answer.so_far(_PAGE)
            while skip and not at_tail:
                chunks, at_tail = await answer.so_far(_PAGE)
        except OffsetGone as error:
            raise as_problem(error) from error
        if skip:
            chunks = []
        if answer.complete and not answer.end:
            if answer.trimmed:
                raise Problem(410, "offset-gone", "the answer is gone: the last turns are kept")
            raise Problem(404, "not-found", "there is no such answer here, or it has expired")
        if reading.live is None or scope["method"] == "HEAD":
            await self._reply(scope, send, answer, chunks, at_tail=at_tail)
        elif reading.live == "sse":
            if reading.told and answer.complete and not chunks:
                await self._replies.reply(scope, send, 204, {"stream-closed": "true"})
                return
            await watched(self._events(scope, send, reading, answer, chunks, at_tail))
        else:
            await watched(self._poll(scope, send, reading, answer, chunks, at_tail))

    async def _reply(
        self,
        scope: Scope,
        send: Send,
        answer: Answer,
        chunks: Sequence[bytes],
        *,
        at_tail: bool,
        status: int = 200,
        cursor: str | None = None,
    ) -> None:
        headers = {
            "content-type": JSON,
            "cache-control": "private, no-store",
            "stream-next-offset": wire.offset_token(answer.end),
        }
        if at_tail:
            headers["stream-up-to-date"] = "true"
        if answer.complete:
            headers["stream-closed"] = "true"
        elif cursor is not None:
            headers["stream-cursor"] = cursor
        body = b"[%b]" % b",".join(chunks)
        await self._replies.reply(scope, send, status, headers, body)

    async def _poll(
        self,
        scope: Scope,
        send: Send,
        reading: Reading,
        answer: Answer,
        chunks: list[bytes],
        at_tail: bool,
    ) -> None:
        if not chunks and not answer.complete:
            at_tail = True
            with suppress(TimeoutError, OffsetGone):
                async with (
                    asyncio.timeout(self._settings.gateway_long_poll_timeout),
                    aclosing(answer.pieces()) as pieces,
                ):
                    async for chunks in pieces:
                        if chunks:
                            break
        await self._reply(
            scope, send, answer, chunks,
            at_tail=at_tail, status=200 if chunks else 204, cursor=wire.cursor(reading.cursor),
        )  # fmt: skip

    async def _events(
        self,
        scope: Scope,
        send: Send,
        reading: Reading,
        answer: Answer,
        chunks: Sequence[bytes],
        at_tail: bool,
    ) -> None:
        cursor = wire.cursor(reading.cursor)
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        await self._replies.start(scope, send, 200, {**headers, "x-accel-buffering": "no"})
        lifetime = self._settings.gateway_sse_lifetime * random.uniform(0.9, 1.1)
        told = False

        async def say(chunks: Sequence[bytes], *, up_to_date: bool = True) -> None:
            nonlocal told
            told = answer.complete
            control = wire.control_event(
                answer.end,
                cursor=None if told else cursor,
                up_to_date=up_to_date or told,
                closed=told,
            )
            data = [b"\n".join(chunks)] if chunks else []
            event = wire.data_event(data, JSON, answer.end) if data else b""
            await _part(send, event + control)

        with suppress(OffsetGone, TimeoutError):
            await say(chunks, up_to_date=at_tail)
            async with asyncio.timeout(lifetime), aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    await (say(piece) if piece else _part(send, wire.HEARTBEAT))
            if answer.complete and not told:
                await say([])
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _part(send: Send, body: bytes) -> None:
    """Send a part of the answer, for as long as the client takes it."""
    async with asyncio.timeout(_PATIENCE):
        await send({"type": "http.response.body", "body": body, "more_body": True})
