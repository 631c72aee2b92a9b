"""One subscription to a stream's live channel, sync and asyncio."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio as aioredis
import redis.exceptions as rx

from celery_streams.errors import StoreUnavailable
from celery_streams.redis.client import AsyncRedisLink, RedisLink
from celery_streams.redis.failures import translated


def message_of(raw: dict[str, Any] | None) -> bytes | None:
    """The data of a live message; ``None`` for a confirmation or nothing.

    Raises:
        StoreUnavailable: the server ended the subscription (the slot moved to another node).
    """
    if raw is None:
        return None
    if raw["type"] == "sunsubscribe":
        raise StoreUnavailable("the live channel moved to another cluster node")
    return raw["data"] if raw["type"] == "smessage" else None


class Subscription:
    """A confirmed subscription: what is published after the constructor returns, arrives."""

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._where = link.address
        self._pubsub: redis.client.PubSub = link.pubsub(channel)
        try:
            self._pubsub.ssubscribe(channel)
            self._confirm(time.monotonic() + link.settings.socket_timeout)
        except BaseException as error:
            self.close()
            if isinstance(error, (rx.RedisError, OSError)):
                raise translated(error, self._where) from error
            raise

    def get(self, timeout: float) -> bytes | None:
        """The next message, or ``None`` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                message = message_of(self._pubsub.get_message(timeout=left))
                if message is not None:
                    return message
        except (rx.RedisError, OSError) as error:
            raise translated(error, self._where) from error
        return None

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._pubsub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _confirm(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            raw = self._pubsub.get_message(timeout=left)
            if raw is not None and raw["type"] == "ssubscribe":
                return
        raise rx.TimeoutError("the subscription was not confirmed")


class AsyncSubscription:
    """The same for one event loop; made by :meth:`open`."""

    def __init__(self, pubsub: aioredis.client.PubSub, where: object) -> None:
        self._pubsub = pubsub
        self._where = where

    @classmethod
    async def open(cls, link: AsyncRedisLink, channel: str) -> AsyncSubscription:
        """Subscribe and wait until the server has confirmed it."""
        subscription = cls(await link.pubsub(channel), link.address)
        try:
            async with asyncio.timeout(link.settings.socket_timeout):
                await subscription._pubsub.ssubscribe(channel)
                await subscription._confirm()
        except BaseException as error:
            await subscription.close()
            if isinstance(error, (rx.RedisError, OSError)):
                raise translated(error, link.address) from error
            raise
        return subscription

    async def get(self, timeout: float) -> bytes | None:
        """The next message, or ``None`` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                message = message_of(await self._pubsub.get_message(timeout=left))
                if message is not None:
                    return message
        except (rx.RedisError, OSError) as error:
            raise translated(error, self._where) from error
        return None

    async def close(self) -> None:
        """Close the connection; safe to repeat."""
        await self._pubsub.aclose()

    async def _confirm(self) -> None:
        while True:
            raw = await self._pubsub.get_message(timeout=1.0)
            if raw is not None and raw["type"] == "ssubscribe":
                return
