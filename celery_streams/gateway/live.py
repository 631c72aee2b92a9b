"""Reads that wait for what comes: server-sent events and long-polling."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from celery_streams.contracts import JSON, Head, Page
from celery_streams.errors import OffsetGone, StoreUnavailable, StreamNotFound
from celery_streams.gateway import wire
from celery_streams.gateway.auth import ConnectionLimit
from celery_streams.gateway.followers import Follower, Write
from celery_streams.gateway.hub import Hub
from celery_streams.gateway.limits import ClientGone
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import CUT_OFF, WRITE, Receive, Replies, Scope, Send
from celery_streams.gateway.run_states import run_state
from celery_streams.gateway.targets import Target
from celery_streams.gateway.topics import Topic, look
from celery_streams.settings import StreamsSettings
from celery_streams.tokens import Access

#: Seconds between attempts to read the log again while the store cannot be reached.
_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Position:
    """Where a live read begins."""

    target: Target
    offset: int | Literal["now"]
    cursor: str | None
    access: Access
    #: The client has been told that the stream is closed. An ``EventSource`` comes back even so.
    told: bool = False


class LiveReads:
    """Both kinds of live reads, on one hub."""

    def __init__(self, hub: Hub, replies: Replies, settings: StreamsSettings) -> None:
        self._hub = hub
        self._limit = ConnectionLimit(settings.gateway_connections_per_token)
        self._replies = replies
        self._settings = settings

    async def missing(self, target: Target, offset: int, run_state: str | None = None) -> Head:
        """The head of a stream that does not exist: empty, if its task may yet open it.

        ``run_state`` is what the store knows of its run.

        Raises:
            StreamNotFound: nobody but a client creates such a stream, or somebody who stands at
                ``offset`` has read of it already.
        """
        if not target.awaited or offset > 0:
            raise StreamNotFound(f"there is no stream {target.path}, or it has expired")
        awaited = Head(target.slot, 0, content_type=JSON, run_state=run_state)
        ended = await self._hub.over(target.slot)
        if ended is None or (await look(self._hub.store, target.slot)).head is not None:
            return awaited  # in the second case, what was so a moment ago: a short run's stream
        return replace(awaited, closed=ended, run_state=ended)

    async def long_poll(
        self, scope: Scope, receive: Receive, send: Send, position: Position
    ) -> None:
        """Answer with the next data, or with ``204`` after ``gateway_long_poll_timeout``."""
        target = position.target
        wait = self._settings.gateway_long_poll_timeout
        async with self._following(receive, position, wait) as (topic, follower, page):
            version = follower.version
            while True:
                head = await self._head_of(page, target, follower)
                end = page.entries[-1].end if page.entries else follower.offset
                over = head.closed is not None and end >= head.end
                if page.entries or over or follower.finished:
                    break
                topic.settle(follower, version)
                await follower.wait()
                if follower.gone:
                    return
                follower.take()
                follower.stale = True
                follower.offset = end
                version = topic.version
                page = await topic.read(end)
            headers = {
                "content-type": head.content_type,
                "stream-next-offset": wire.offset_token(end),
                "cache-control": "private, no-store",
            }
            if end >= head.end:
                headers["stream-up-to-date"] = "true"
            if over:
                headers["stream-closed"] = "true"
            else:
                headers["stream-cursor"] = topic.next_cursor(position.cursor)
            state = run_state(topic.slot, head)
            if state is not None:
                headers["stream-run-state"] = state
            payloads = wire.payloads_from(page.entries, follower.offset, head.content_type)
            body = wire.body_of(payloads, head.content_type) if payloads else b""
            await self._replies.reply(scope, send, 200 if payloads else 204, headers, body)

    async def sse(self, scope: Scope, receive: Receive, send: Send, position: Position) -> None:
        """Send events until the stream ends, the client leaves, or it is time to reconnect."""
        lifetime = self._settings.gateway_sse_lifetime * random.uniform(0.9, 1.1)
        write = scope.get(WRITE)
        following = self._following(receive, position, lifetime, write)
        async with following as (topic, follower, page):
            head = await self._head_of(page, position.target, follower)
            if position.told and head.closed is not None and follower.offset >= head.end:
                # The only answer that keeps an EventSource from coming back for ever.
                await self._replies.reply(scope, send, 204, {"stream-closed": "true"})
                return
            headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
            if not wire.is_text(head.content_type):
                headers["stream-sse-data-encoding"] = "base64"
            state = run_state(topic.slot, head)
            if state is not None:
                headers["stream-run-state"] = state
            headers["x-accel-buffering"] = "no"
            await self._replies.start(scope, send, 200, headers)
            topic.next_cursor(position.cursor)
            try:
                await self._tail(send, position.target, topic, follower, page, head)
            except asyncio.CancelledError:
                if not follower.cut:
                    raise
                if cut_off := scope.get(CUT_OFF):
                    cut_off()
                return  # the connection ends without the last chunk
            with suppress(OSError):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tail(
        self,
        send: Send,
        target: Target,
        topic: Topic,
        follower: Follower,
        page: Page,
        head: Head,
    ) -> None:
        encoded = not wire.is_text(head.content_type)
        version = follower.version
        greeted = False
        while not follower.gone:
            state = run_state(topic.slot, head)
            if page.entries or head.closed is not None or state != follower.told or not greeted:
                frame, end = self._caught_up(topic, follower, page, head)
                await _part(send, follower, frame)
                follower.offset, follower.sent_at, greeted = end, time.monotonic(), True
                follower.told = state
            if head.closed is not None and follower.offset >= head.end:
                return
            if follower.offset >= head.end:
                topic.settle(follower, version)
            if not follower.stale and not await self._go_on_live(send, follower):
                return
            version = topic.version
            found = await self._read(topic, follower, target)
            if found is None:
                return
            page, head = found
            if follower.offset > head.end:
                return  # the store has lost what this client has: it asks again, and is told
            if encoded is wire.is_text(head.content_type):
                return  # it was opened as another type than announced: the client asks again

    async def _go_on_live(self, send: Send, follower: Follower) -> bool:
        """Send what the topic brings; ``True`` once the follower has to read the log."""
        while True:
            if follower.pending:
                await _part(send, follower, follower.take())
            elif follower.gone or follower.finished:
                return False
            elif follower.stale:
                return True
            else:
                await follower.wait()

    async def _read(
        self, topic: Topic, follower: Follower, target: Target
    ) -> tuple[Page, Head] | None:
        """The next page, however long the store is away; ``None``: there is nothing more."""
        while not (follower.gone or follower.finished):
            try:
                page = await topic.read(follower.offset)
                return page, await self._head_of(page, target, follower)
            except StoreUnavailable:
                await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))
            except (OffsetGone, StreamNotFound):
                return None
        return None

    async def _head_of(self, page: Page, target: Target, follower: Follower) -> Head:
        return page.head or await self.missing(target, follower.offset, page.run_state)

    def _caught_up(
        self, topic: Topic, follower: Follower, page: Page, head: Head
    ) -> tuple[bytes, int]:
        """One page as events, and where it ends."""
        content_type = head.content_type
        payloads = wire.payloads_from(page.entries, follower.offset, content_type)
        end = page.entries[-1].end if page.entries else follower.offset
        at_tail = end >= head.end
        closed = at_tail and head.closed is not None
        control = wire.control_event(
            end,
            cursor=None if closed else topic.next_cursor(),
            up_to_date=at_tail,
            closed=closed,
            run_state=run_state(topic.slot, head),
        )
        return (wire.data_event(payloads, content_type, end) if payloads else b"") + control, end

    @asynccontextmanager
    async def _following(
        self, receive: Receive, position: Position, seconds: float, write: Write | None = None
    ) -> AsyncIterator[tuple[Topic, Follower, Page]]:
        """A follower at the position, its first page, and a watch on its client."""
        target = position.target
        with self._limit.held(position.access):
            topic = await self._hub.topic(target.slot)
            follower = topic.follow(0, time.monotonic() + seconds, write)
            if self._hub.draining:
                follower.finished = True
            watch = asyncio.create_task(_watch(receive, follower))
            try:
                follower.version = topic.version  # before the log is read
                page = await self._first_page(topic, follower, position)
                yield topic, follower, page
            finally:
                watch.cancel()
                follower.leave()

    async def _first_page(self, topic: Topic, follower: Follower, position: Position) -> Page:
        offset = position.offset
        if offset == "now":
            page = await topic.look()
            follower.offset = page.head.end if page.head else 0
        else:
            follower.offset = offset
            page = await topic.read(offset)
        head = page.head
        if head is None:
            return Page((), await self._head_of(page, position.target, follower))
        check_offset(follower.offset, head)
        if head.ttl is not None:
            await self._hub.store.touch(topic.slot, head.ttl)
        return page


def check_offset(offset: int, head: Head) -> None:
    """Refuse an offset that this stream has not given out."""
    if offset > head.end:
        raise Problem(
            400, "invalid-offset",
            f"the stream ends at {wire.offset_token(head.end)}; the offset lies beyond that",
        )  # fmt: skip


async def _part(send: Send, follower: Follower, data: bytes) -> None:
    """Send a part of the answer, for as long as the client takes."""
    follower.sending = True
    await send({"type": "http.response.body", "body": data, "more_body": True})
    follower.sending = False


async def _watch(receive: Receive, follower: Follower) -> None:
    """Forget the follower as soon as its client has gone."""
    with suppress(ClientGone):
        while (await receive())["type"] != "http.disconnect":
            pass
    follower.gone = True
    follower.wake()
