"""One subscription to a stream's live channel, sync and asyncio.

On a connection of its own rather than redis-py's ``PubSub``, which connects and subscribes
again by itself when the connection is lost: what was published meanwhile would be missed
without a word. Here a lost connection is an error, and the follower reads the log again.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from celery_streams.errors import StoreUnavailable
from celery_streams.redis.client import AsyncRedisLink, RedisLink
from celery_streams.redis.connect import (
    AsyncConnection,
    SyncConnection,
    heeding_cancellation,
    receive,
)
from celery_streams.redis.failures import REDIS_ERRORS, translated


def message_of(push: list[Any], channel: str) -> bytes | None:
    """The data of what a subscribed connection received; ``None`` for the confirmation.

    Raises:
        StoreUnavailable: the server ended the subscription (the slot moved to another node).
    """
    kind, _, data = push
    if kind == b"smessage":
        return bytes(data)
    if kind == b"sunsubscribe":
        raise StoreUnavailable(f"the live channel {channel} has moved to another cluster node")
    return None


class Subscription:
    """A confirmed subscription: what is published after the constructor returns, arrives."""

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._link = link
        self._channel = channel
        self._connection: SyncConnection = link.connection(channel)
        try:
            self._connection.connect()
            self._connection.send_command("SSUBSCRIBE", channel)
            self._connection.read_response()
        except BaseException as error:
            self.close()
            if isinstance(error, REDIS_ERRORS):
                link.refresh()
                raise translated(error, link.address) from error
            raise

    def get(self, timeout: float) -> bytes | None:
        """The next message, or ``None`` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                push = receive(self._connection, deadline - time.monotonic())
                message = None if push is None else message_of(push, self._channel)
                if push is None or message is not None:
                    return message
        except REDIS_ERRORS as error:
            if not isinstance(error, StoreUnavailable):
                self._link.refresh()
            raise translated(error, self._link.address) from error

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._connection.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class AsyncSubscription:
    """The same for one event loop; made by :meth:`open`."""

    def __init__(self, link: AsyncRedisLink, channel: str, connection: AsyncConnection) -> None:
        self._link = link
        self._channel = channel
        self._connection = connection

    @classmethod
    async def open(cls, link: AsyncRedisLink, channel: str) -> AsyncSubscription:
        """Subscribe and wait until the server has confirmed it."""
        connection = await link.connection(channel)
        subscription = cls(link, channel, connection)
        try:
            await heeding_cancellation(subscription._subscribe())
        except BaseException as error:
            await subscription.close()
            if isinstance(error, REDIS_ERRORS):
                await link.refresh()
                raise translated(error, link.address) from error
            raise
        return subscription

    async def _subscribe(self) -> None:
        await self._connection.connect()
        await self._connection.send_command("SSUBSCRIBE", self._channel)
        await self._connection.read_response()

    async def get(self, timeout: float) -> bytes | None:
        """The next message, or ``None`` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                push = await self._connection.read_response(timeout=left, disconnect_on_error=False)
                message = None if push is None else message_of(push, self._channel)
                if message is not None:
                    return message
        except REDIS_ERRORS as error:
            if not isinstance(error, StoreUnavailable):
                await self._link.refresh()
            raise translated(error, self._link.address) from error
        return None

    async def close(self) -> None:
        """Close the connection; safe to repeat. Never waits: safe in a cancelled task."""
        await self._connection.disconnect(nowait=True)
