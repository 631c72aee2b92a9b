"""The thin I/O shell: send a :class:`Call`, get its parsed reply. Once sync, once async.

A :class:`Call` is built and its reply parsed without I/O, so everything that knows what a
command means is written once, and only these two classes exist twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import redis
import redis.asyncio as aioredis
import redis.exceptions as rx

from celery_streams.redis.address import Address
from celery_streams.redis.connect import AsyncClient, SyncClient, connect, connect_async
from celery_streams.redis.failures import translated
from celery_streams.redis.scripts import Script
from celery_streams.settings import StreamsSettings

T = TypeVar("T")
Arg = str | bytes | int | float


#: Replies by which a node says that it is not the primary for this any more.
_MOVED_ON = (rx.MovedError, rx.ReadOnlyError, rx.ClusterDownError)


def _as_is(reply: Any) -> Any:
    return reply


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script call or command: what to send, where it belongs, how to read the reply.

    ``parse`` may raise a :class:`~celery_streams.errors.StreamError` the reply stands for.
    """

    command: Script | str
    keys: tuple[str, ...]
    args: tuple[Arg, ...] = field(default=(), repr=False)
    parse: Callable[[Any], T] = _as_is

    def words(self, *, by_source: bool = False) -> tuple[Arg, ...]:
        """The command as sent: by digest, or with the whole source for a new server."""
        if isinstance(self.command, str):
            return (self.command, *self.keys, *self.args)
        verb, body = ("EVAL", self.command.source) if by_source else ("EVALSHA", self.command.digest)
        return (verb, body, len(self.keys), *self.keys, *self.args)


class RedisLink:
    """Sync access to one server or cluster. Thread-safe; belongs to the process that made it."""

    def __init__(self, address: Address, settings: StreamsSettings) -> None:
        self.address = address
        self.settings = settings
        self.client: SyncClient = connect(address, settings)

    def call(self, call: Call[T]) -> T:
        """Send one call. Raises what its reply stands for, or the translated Redis error."""
        try:
            try:
                reply = self.client.execute_command(*call.words())
            except rx.NoScriptError:
                reply = self.client.execute_command(*call.words(by_source=True))
        except (rx.RedisError, OSError) as error:
            raise translated(error, self.address) from error
        return call.parse(reply)

    def call_many(
        self, calls: Sequence[Call[T]], *, wait_replicas: int = 0
    ) -> list[T | Exception]:
        """Send calls in one round trip a node; failures are returned in their places."""
        results: list[T | Exception] = [cast("T", None)] * len(calls)
        for node, places in self._by_node(calls).items():
            replies = self._pipeline(node, [calls[place] for place in places], wait_replicas)
            for place, reply in zip(places, replies, strict=True):
                results[place] = self._settled(calls[place], reply, wait_replicas)
        return results

    def pubsub(self, channel: str) -> redis.client.PubSub:
        """A subscriber on the node that owns ``channel``. Not thread-safe; close it."""
        try:
            return self._node(channel).pubsub()
        except (rx.RedisError, OSError) as error:
            raise translated(error, self.address) from error

    def refresh(self) -> None:
        """Learn anew which node of a cluster serves what, after it may have failed over."""
        if isinstance(self.client, redis.RedisCluster):
            with suppress(rx.RedisError, OSError):
                self.client.nodes_manager.initialize()

    def close(self) -> None:
        """Close every connection. The link can be used again afterwards."""
        self.client.close()

    def _by_node(self, calls: Sequence[Call[T]]) -> dict[redis.Redis | None, list[int]]:
        places: dict[redis.Redis | None, list[int]] = defaultdict(list)
        for place, call in enumerate(calls):
            try:
                node: redis.Redis | None = self._node(call.keys[0])
            except (rx.RedisError, OSError):
                node = None
            places[node].append(place)
        return places

    def _node(self, key: str) -> redis.Redis:
        if isinstance(self.client, redis.Redis):
            return self.client
        node = self.client.get_node_from_key(key)
        if node is None:
            raise rx.ClusterDownError(f"no cluster node serves the slot of {key}")
        return cast("redis.Redis", self.client.get_redis_connection(node))

    def _pipeline(
        self, node: redis.Redis | None, calls: Sequence[Call[T]], wait_replicas: int
    ) -> list[Any]:
        if node is None:
            return [rx.ClusterDownError("the cluster's nodes are unknown")] * len(calls)
        pipeline = node.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.words())
        if wait_replicas:
            pipeline.execute_command("WAIT", wait_replicas, _wait_ms(self.settings))
        try:
            replies = pipeline.execute(raise_on_error=False)
        except (rx.RedisError, OSError) as error:
            self.refresh()
            return [error] * len(calls)
        if any(isinstance(reply, _MOVED_ON) for reply in replies):
            self.refresh()
        if wait_replicas and (lagging := _lagging(replies.pop(), wait_replicas)):
            return [reply if isinstance(reply, Exception) else lagging for reply in replies]
        return replies

    def _settled(self, call: Call[T], reply: Any, wait_replicas: int) -> T | Exception:
        if isinstance(reply, (rx.NoScriptError, rx.MovedError, rx.AskError)):
            if not wait_replicas or isinstance(reply, rx.NoScriptError):
                try:
                    reply = self.client.execute_command(
                        *call.words(by_source=isinstance(reply, rx.NoScriptError))
                    )
                    if wait_replicas:
                        # Not yet known to be on the replicas: the resend finds out.
                        reply = rx.ConnectionError("sent by source; replicas not awaited")
                except (rx.RedisError, OSError) as error:
                    reply = error
        return _parsed(call, reply, self.address)


class AsyncRedisLink:
    """The same for one event loop."""

    def __init__(self, address: Address, settings: StreamsSettings) -> None:
        self.address = address
        self.settings = settings
        self.client: AsyncClient = connect_async(address, settings)

    async def call(self, call: Call[T]) -> T:
        """See :meth:`RedisLink.call`."""
        try:
            try:
                reply = await self.client.execute_command(*call.words())
            except rx.NoScriptError:
                reply = await self.client.execute_command(*call.words(by_source=True))
        except (rx.RedisError, OSError) as error:
            raise translated(error, self.address) from error
        return call.parse(reply)

    async def pubsub(self, channel: str) -> aioredis.client.PubSub:
        """A subscriber on the node that owns ``channel``; close it."""
        if isinstance(self.client, aioredis.Redis):
            return self.client.pubsub()
        try:
            await self.client.initialize()
            node = self.client.get_node_from_key(channel)
        except (rx.RedisError, OSError) as error:
            raise translated(error, self.address) from error
        if node is None:
            raise translated(rx.ClusterDownError("no node serves the channel"), self.address)
        # The cluster client of the oldest redis-py we support has no pub/sub of its own.
        pool = aioredis.ConnectionPool(
            connection_class=node.connection_class, **node.connection_kwargs
        )
        return aioredis.Redis.from_pool(pool).pubsub()

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()


def _parsed(call: Call[T], reply: Any, where: object) -> T | Exception:
    if isinstance(reply, Exception):
        return translated(reply, where)
    try:
        return call.parse(reply)
    except Exception as error:
        return error


def _lagging(reply: Any, wanted: int) -> Exception | None:
    if isinstance(reply, Exception):
        return reply
    if int(reply) < wanted:
        return rx.ConnectionError(f"only {reply} of {wanted} replicas have the batch so far")
    return None


def _wait_ms(settings: StreamsSettings) -> int:
    return max(1, int(settings.socket_timeout * 500))
