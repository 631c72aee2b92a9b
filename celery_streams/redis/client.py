"""The thin I/O shell: send calls, get their parsed replies. Once sync, once async.

What a call means and what becomes of it is decided in :mod:`celery_streams.redis.calls`. Here
bytes move: one round trip a node, on one connection, with every wait bounded by the settings'
timeouts. Nothing is retried after a broken connection (the command may have been applied):
writers and readers own the retrying; but the next call looks for a cluster's nodes anew.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import redis
import redis.asyncio as aioredis
import redis.exceptions as rx

from celery_streams.redis.address import Address
from celery_streams.redis.calls import Arg, Call, Hop, Replicas, Sending, packed
from celery_streams.redis.connect import (
    AsyncClient,
    AsyncConnection,
    SyncClient,
    SyncConnection,
    connect,
    connect_async,
    heeding_cancellation,
)
from celery_streams.redis.failures import REDIS_ERRORS, translated
from celery_streams.redis.lending import Lender
from celery_streams.settings import StreamsSettings

__all__ = ["AsyncRedisLink", "Call", "Lane", "RedisLink"]

T = TypeVar("T")


class RedisLink:
    """Sync access to one server or cluster. Thread-safe; belongs to the process that made it.

    Connects at its first call.
    """

    def __init__(self, address: Address, settings: StreamsSettings) -> None:
        self.address = address
        self.settings = settings
        self._client: SyncClient | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> SyncClient:
        """The redis-py client. A cluster's asks for the nodes when it is made.

        Raises:
            StoreUnavailable, ConfigurationError: no node of the cluster can be used.
        """
        try:
            return self._connected()
        except REDIS_ERRORS as error:
            raise translated(error, self.address) from error

    def call(self, call: Call[T]) -> T:
        """Send one call. Raises what its reply stands for, or the translated Redis error."""
        result = self.call_many((call,))[0]
        if isinstance(result, Exception):
            raise result
        return result

    def call_many(
        self, calls: Sequence[Call[T]], *, wait_replicas: int = 0, lane: Lane | None = None
    ) -> list[T | Exception]:
        """Send calls in one round trip a node; failures are returned in their places.

        ``lane`` is the caller's own (see :class:`Lane`); else connections come from the pool.
        With ``wait_replicas``, a call whose effect that many replicas have not confirmed is
        answered with :class:`StoreUnavailable`: send it again (it must be idempotent).
        """
        sending = Sending(calls, self.address, _replicas(wait_replicas, self.settings))
        while hops := sending.hops():
            for pool, group in self._by_pool(sending, hops):
                try:
                    replies = _exchange(pool, sending.commands(group), lane)
                except REDIS_ERRORS as error:
                    sending.failed(group, error)
                else:
                    sending.answered(group, replies)
            if sending.outdated:
                sending.outdated = False
                self.refresh()
        return sending.results

    def connection(self, channel: str) -> SyncConnection:
        """A connection of the caller's own to the node that owns ``channel``; not open yet."""
        try:
            pool = self._pool(channel)
            return cast("SyncConnection", pool.connection_class(**pool.connection_kwargs))
        except REDIS_ERRORS as error:
            raise translated(error, self.address) from error

    def refresh(self) -> None:
        """Ask a cluster for its nodes again, if one answers: it may have failed over."""
        if isinstance(self._client, redis.RedisCluster):
            with suppress(*REDIS_ERRORS):
                self._client.nodes_manager.initialize()

    def close(self) -> None:
        """Close every connection. The link can be used again afterwards."""
        if self._client is not None:
            self._client.close()

    def _by_pool(
        self, sending: Sending[T], hops: list[Hop]
    ) -> Iterable[tuple[redis.ConnectionPool, list[Hop]]]:
        groups: dict[redis.ConnectionPool, list[Hop]] = defaultdict(list)
        for hop in hops:
            try:
                groups[self._pool(sending.key(hop), hop.asked)].append(hop)
            except REDIS_ERRORS as error:
                sending.failed((hop,), error)
        return groups.items()

    def _connected(self) -> SyncClient:
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = connect(self.address, self.settings)
        return self._client

    def _pool(self, key: str, asked: tuple[str, int] | None = None) -> redis.ConnectionPool:
        client = self._connected()
        if isinstance(client, redis.Redis):
            return client.connection_pool
        node = client.get_node(*asked) if asked else client.get_node_from_key(key)
        if node is None:
            raise rx.ClusterDownError(f"no known cluster node serves {key}")
        return client.get_redis_connection(node).connection_pool


class AsyncRedisLink:
    """The same for one event loop.

    With ``connections``, at most that many round trips are under way at once.
    """

    def __init__(
        self, address: Address, settings: StreamsSettings, connections: int | None = None
    ) -> None:
        self.address = address
        self.settings = settings
        self._client: AsyncClient | None = None
        self._pools: dict[str, aioredis.ConnectionPool] = {}
        self._lender = Lender(settings.socket_timeout)
        self._turns = None if connections is None else asyncio.Semaphore(connections)

    async def call(self, call: Call[T]) -> T:
        """See :meth:`RedisLink.call`."""
        result = (await self.call_many((call,)))[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def call_many(
        self, calls: Sequence[Call[T]], *, wait_replicas: int = 0
    ) -> list[T | Exception]:
        """See :meth:`RedisLink.call_many`."""
        sending = Sending(calls, self.address, _replicas(wait_replicas, self.settings))
        while hops := sending.hops():
            for pool, group in await self._by_pool(sending, hops):
                try:
                    replies = await self._exchange(pool, sending.commands(group))
                except REDIS_ERRORS as error:
                    sending.failed(group, error)
                else:
                    sending.answered(group, replies)
            if sending.outdated:
                sending.outdated = False
                await self.refresh()
        return sending.results

    @property
    def connections(self) -> int:
        """How many connections it has open."""
        return self._lender.connections

    async def connection(self, channel: str) -> AsyncConnection:
        """See :meth:`RedisLink.connection`."""
        try:
            pool = await self._pool(channel)
            return pool.connection_class(**pool.connection_kwargs)
        except REDIS_ERRORS as error:
            raise translated(error, self.address) from error

    async def node(self, channel: str) -> str:
        """The name of the cluster node that owns ``channel``; empty for a single server."""
        try:
            await self._pool(channel)
        except REDIS_ERRORS as error:
            raise translated(error, self.address) from error
        if not isinstance(self._client, aioredis.RedisCluster):
            return ""
        node = self._client.get_node_from_key(channel)
        return "" if node is None else str(node.name)

    async def refresh(self) -> None:
        """See :meth:`RedisLink.refresh`."""
        if isinstance(self._client, aioredis.RedisCluster):
            with suppress(*REDIS_ERRORS):
                await heeding_cancellation(self._client.nodes_manager.initialize())

    async def close(self) -> None:
        """Close every connection. The link can be used again afterwards."""
        await self._lender.close()
        pools, self._pools = self._pools, {}
        client, self._client = self._client, None
        for pool in pools.values():
            await pool.aclose()
        if client is not None:
            await client.aclose()

    async def _exchange(
        self, pool: aioredis.ConnectionPool, commands: list[tuple[Arg, ...]]
    ) -> list[Any]:
        """One of the round trips that may be under way; waits for its turn as for a reply."""
        turns = self._turns
        if turns is None:
            return await heeding_cancellation(self._lender.exchange(pool, commands))
        if turns.locked():
            try:
                async with asyncio.timeout(self.settings.socket_timeout):
                    await turns.acquire()
            except TimeoutError:
                raise rx.TimeoutError("every connection is waiting for a reply") from None
        else:
            await turns.acquire()
        try:
            return await heeding_cancellation(self._lender.exchange(pool, commands))
        finally:
            turns.release()

    async def _by_pool(
        self, sending: Sending[T], hops: list[Hop]
    ) -> Iterable[tuple[aioredis.ConnectionPool, list[Hop]]]:
        groups: dict[aioredis.ConnectionPool, list[Hop]] = defaultdict(list)
        for hop in hops:
            try:
                groups[await self._pool(sending.key(hop), hop.asked)].append(hop)
            except REDIS_ERRORS as error:
                sending.failed((hop,), error)
        return groups.items()

    async def _pool(
        self, key: str, asked: tuple[str, int] | None = None
    ) -> aioredis.ConnectionPool:
        if self._client is None:
            self._client = connect_async(self.address, self.settings)
        client = self._client
        if isinstance(client, aioredis.Redis):
            return client.connection_pool
        await heeding_cancellation(client.initialize())
        node = client.get_node(*asked) if asked else client.get_node_from_key(key)
        if node is None:
            raise rx.ClusterDownError(f"no known cluster node serves {key}")
        # redis-py's asyncio cluster nodes hold bare connections: they have no pool that
        # notices a stale one, and no way to send several commands on one.
        pool = self._pools.get(node.name)
        if pool is None:
            pool = self._pools[node.name] = aioredis.ConnectionPool(
                connection_class=node.connection_class, **node.connection_kwargs
            )
        return pool


class Lane:
    """Connections of one thread's own, one a node, for whoever sends all the time.

    A pool makes sure that an idle connection is still good before it lends it, which costs a
    third of a round trip. Here a stale one shows as a failed send, so use a lane only for what
    is sent again after any failure, and may be.
    """

    def __init__(self) -> None:
        self._connections: dict[redis.ConnectionPool, SyncConnection] = {}

    def connection(self, pool: redis.ConnectionPool) -> SyncConnection:
        """The connection to the pool's server; opened by the first send."""
        connection = self._connections.get(pool)
        if connection is None:
            connection = self._connections[pool] = cast(
                "SyncConnection", pool.connection_class(**pool.connection_kwargs)
            )
        return connection

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.disconnect()
        self._connections.clear()


def _exchange(
    pool: redis.ConnectionPool, commands: list[tuple[Arg, ...]], lane: Lane | None
) -> list[Any]:
    """Send commands on one connection and read as many replies; error replies are values."""
    connection = pool.get_connection() if lane is None else lane.connection(pool)
    try:
        connection.send_packed_command([packed(commands)], check_health=False)
        replies = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except rx.ResponseError as error:
                replies.append(error)
        return replies
    except BaseException:
        connection.disconnect()  # a reply may be on its way that nobody waits for
        raise
    finally:
        if lane is None:
            pool.release(cast("Any", connection))


def _replicas(count: int, settings: StreamsSettings) -> Replicas:
    if not count:
        return Replicas()
    return Replicas(count, max(1, int(settings.socket_timeout * 500)))
