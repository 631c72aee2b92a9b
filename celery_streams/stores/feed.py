"""Live events of many streams over one connection a node."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Any

from celery_streams.errors import StoreUnavailable, StreamError
from celery_streams.protocol import Deliver
from celery_streams.redis.client import AsyncRedisLink
from celery_streams.redis.connect import AsyncConnection, heeding_cancellation
from celery_streams.redis.failures import REDIS_ERRORS, translated
from celery_streams.redis.layout import Layout
from celery_streams.redis.outages import Outage
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.cursor import parse_live

logger = logging.getLogger("celery_streams.stores")

#: Seconds between attempts to reconnect, at most.
_LONGEST_PAUSE = 2.0
#: Seconds of silence after which a connection is asked for a sign of life.
_SILENCE = 10.0


class RedisFeed:
    """A :class:`~celery_streams.protocol.Feed` on sharded channels.

    When a connection is lost, everybody who listens on it is told to look at the log once the
    channels are subscribed again: nothing is missed, however long that takes.
    """

    def __init__(self, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._timeout = settings.socket_timeout
        self._nodes: dict[str, _Node] = {}
        self._homes: dict[str, _Node] = {}
        self._listeners: dict[str, Deliver] = {}
        self._repair: asyncio.Task[None] | None = None
        self._homeless: set[str] = set()
        self._outage = Outage(logger, "live events")

    async def listen(self, slot: Slot, deliver: Deliver) -> None:
        """See :meth:`celery_streams.protocol.Feed.listen`."""
        channel = self._layout.live(slot)
        self._listeners[channel] = deliver
        try:
            try:
                await self._subscribe(channel)
            except StoreUnavailable:
                if not self._link.address.cluster:
                    raise
                await self._link.refresh()  # the slot may have moved, or its node be gone
                await self._subscribe(channel)
        except BaseException:
            self._listeners.pop(channel, None)
            self._homes.pop(channel, None)
            raise

    async def ignore(self, slot: Slot) -> None:
        """See :meth:`celery_streams.protocol.Feed.ignore`."""
        channel = self._layout.live(slot)
        self._listeners.pop(channel, None)
        self._homeless.discard(channel)
        node = self._homes.pop(channel, None)
        if node is not None:
            await node.leave(channel)

    @property
    def connections(self) -> int:
        """How many connections there are: one for each node with a stream listened to."""
        return len(self._nodes)

    async def aclose(self) -> None:
        """See :meth:`celery_streams.protocol.Feed.aclose`."""
        self._listeners.clear()
        if self._repair is not None:
            self._repair.cancel()
        for node in list(self._nodes.values()):
            await node.close()
        self._nodes.clear()

    async def _subscribe(self, channel: str) -> None:
        where = await self._link.node(channel)
        node = self._nodes.get(where)
        if node is None:
            node = self._nodes[where] = _Node(self, self._link, where, self._timeout)
        self._homes[channel] = node
        await node.join(channel)
        if channel not in self._listeners:  # ignored meanwhile
            self._homes.pop(channel, None)
            await node.leave(channel)

    def received(self, channel: str, message: bytes) -> None:
        """A node's connection brought a message."""
        deliver = self._listeners.get(channel)
        if deliver is not None:
            deliver(parse_live(message))

    def lost(self, node: _Node, channels: set[str]) -> None:
        """Channels have lost their connection, or have moved to another node."""
        if self._nodes.get(node.where) is node and not node.usable:
            del self._nodes[node.where]
        for channel in channels:
            if self._homes.get(channel) is node:
                del self._homes[channel]
                self._homeless.add(channel)
        if self._homeless and (self._repair is None or self._repair.done()):
            self._repair = asyncio.create_task(self._resubscribe())

    async def _resubscribe(self) -> None:
        pause = 0.05
        while self._homeless:
            try:
                await self._link.refresh()
                while self._homeless:
                    channels = list(self._homeless)[:1000]
                    back = [self._back(channel) for channel in channels]
                    for failure in await asyncio.gather(*back, return_exceptions=True):
                        if failure is not None:
                            raise failure
                    pause = 0.05
            except StreamError as error:
                self._outage.failed(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._outage.over()

    async def _back(self, channel: str) -> None:
        # First: if this connection is lost, too, the channel is homeless again at once.
        self._homeless.discard(channel)
        if channel not in self._listeners:
            return
        try:
            await self._subscribe(channel)
        except BaseException:
            self._homeless.add(channel)
            raise
        deliver = self._listeners.get(channel)
        if deliver is not None:
            deliver(None)


class _Node:
    """One connection that subscribes to channels of one node, and the task that reads it."""

    def __init__(self, feed: RedisFeed, link: AsyncRedisLink, where: str, timeout: float) -> None:
        self.where = where
        self.usable = True
        self._feed = feed
        self._link = link
        self._timeout = timeout
        self._connection: AsyncConnection | None = None
        self._opening: asyncio.Task[AsyncConnection] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._heard = False
        self._closing: asyncio.Task[None] | None = None
        self._joined: set[str] = set()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def __str__(self) -> str:
        return self.where or str(self._link.address)

    async def join(self, channel: str) -> None:
        """Subscribe and wait until the server has confirmed it."""
        if channel in self._joined:
            return
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(confirmed)
        try:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open(channel))
            await asyncio.shield(self._opening)
            await self._send("SSUBSCRIBE", channel)
            async with asyncio.timeout(self._timeout):
                await confirmed
        except StreamError:
            self._fail()
            raise
        except TimeoutError:
            self._fail()
            raise StoreUnavailable(
                f"{self._link.address} did not confirm a subscription in {self._timeout:g} s"
            ) from None
        except REDIS_ERRORS as error:
            self._fail()
            raise translated(error, self._link.address) from error
        finally:
            waiting = self._waiting.get(channel)
            if waiting and confirmed in waiting:
                waiting.remove(confirmed)

    async def leave(self, channel: str) -> None:
        """Unsubscribe, without waiting for the confirmation."""
        self._joined.discard(channel)
        with suppress(*REDIS_ERRORS, StreamError):
            await self._send("SUNSUBSCRIBE", channel)

    async def close(self) -> None:
        """Close the connection."""
        self.usable = False
        for task in (self._opening, self._reader, self._watch):
            if task is not None:
                task.cancel()
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def _open(self, channel: str) -> AsyncConnection:
        connection = await self._link.connection(channel)
        await heeding_cancellation(connection.connect())
        connection.socket_timeout = None
        self._connection = connection
        self._reader = asyncio.create_task(self._read(connection))
        self._watch = asyncio.create_task(self._listen_for_life(connection))
        return connection

    async def _send(self, verb: str, channel: str) -> None:
        if self._connection is None or not self.usable:
            raise StoreUnavailable(f"the subscription connection to {self} was lost")
        await self._connection.send_command(verb, channel)

    async def _read(self, connection: AsyncConnection) -> None:
        try:
            while True:
                # Without a timeout: a timer for each message costs as much as reading it.
                push = await connection.read_response(disconnect_on_error=False)
                self._heard = True
                self._take(push)
        except REDIS_ERRORS as error:
            logger.info("a subscription connection to %s was lost: %s", self, error)
            self._fail()

    async def _listen_for_life(self, connection: AsyncConnection) -> None:
        """Take a silent connection for lost if it does not answer."""
        while self.usable:
            self._heard = False
            await asyncio.sleep(_SILENCE)
            if self._heard:
                continue
            with suppress(*REDIS_ERRORS):
                await connection.send_command("PING", check_health=False)
                await asyncio.sleep(self._timeout)
            if not self._heard:
                logger.info("a subscription connection to %s is silent", self)
                self._fail()

    def _take(self, push: list[Any]) -> None:
        if len(push) != 3:
            return  # the answer to a PING
        kind, name, data = push
        channel = name.decode()
        if kind == b"smessage":
            self._feed.received(channel, data)
        elif kind == b"ssubscribe":
            self._joined.add(channel)
            for confirmed in self._waiting.pop(channel, []):
                if not confirmed.done():
                    confirmed.set_result(None)
        elif kind == b"sunsubscribe" and channel in self._joined:
            # Not asked for: a cluster's slot has moved.
            self._joined.discard(channel)
            self._feed.lost(self, {channel})

    def _fail(self) -> None:
        if not self.usable:
            return
        self.usable = False
        error = StoreUnavailable(f"the subscription connection to {self} was lost")
        for waiting in self._waiting.values():
            for confirmed in waiting:
                if not confirmed.done():
                    confirmed.set_exception(error)
                    confirmed.exception()  # seen: whoever waits may have given up already
        self._waiting.clear()
        for task in (self._reader, self._watch):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if self._connection is not None:
            self._closing = asyncio.create_task(self._connection.disconnect(nowait=True))
        joined, self._joined = self._joined, set()
        self._feed.lost(self, joined)
