"""Open redis-py clients the way this package needs them.

Clients speak RESP2 (one reply form on every server version), never retry by themselves (the
writer and the reader own the retry policy, and must know what was sent), and have bounded
timeouts (a silent server must become an error, never a hang).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import redis
import redis.asyncio as aioredis
import redis.asyncio.connection
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from celery_streams.errors import ConfigurationError
from celery_streams.redis.address import Address
from celery_streams.settings import StreamsSettings

T = TypeVar("T")
SyncClient = redis.Redis | redis.RedisCluster
AsyncClient = aioredis.Redis | aioredis.RedisCluster
SyncConnection = redis.connection.AbstractConnection
AsyncConnection = aioredis.connection.AbstractConnection

#: Keeps redis-py from telling the server its name and version: that takes two round trips a
#: connection, and as long again to parse its own metadata each time. ``client_name`` says who
#: is connected. The option has another name since redis-py 7.1.
_UNINTRODUCED: dict[str, Any] = (
    {"driver_info": None}
    if find_spec("redis.driver_info")
    else {"lib_name": None, "lib_version": None}
)

#: Whether a reply can be waited for without first asking whether there is one, which takes
#: redis-py several system calls. Older versions have only that.
_WAITS_FOR_REPLIES = (
    "timeout" in inspect.signature(redis.connection.AbstractConnection.read_response).parameters
)


def connect(address: Address, settings: StreamsSettings) -> SyncClient:
    """A sync client; it connects at its first command."""
    options = _options(address, settings)
    if address.cluster:
        return redis.RedisCluster.from_url(
            address.url, retry=Retry(NoBackoff(), 0), require_full_coverage=False, **options
        )
    with _explained(address):
        client = redis.Redis.from_url(address.url, retry=Retry(NoBackoff(), 0), **options)
        # Made for nothing but to learn now whether it takes the URL's options.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    return client


def connect_async(address: Address, settings: StreamsSettings) -> AsyncClient:
    """An asyncio client, for the running event loop only."""
    options = _options(address, settings)
    if address.cluster:
        return _AsyncCluster.from_url(
            address.url, retry=AsyncRetry(NoBackoff(), 0), require_full_coverage=False, **options
        )
    with _explained(address):
        return aioredis.Redis.from_url(address.url, retry=AsyncRetry(NoBackoff(), 0), **options)


class _AsyncCluster(aioredis.RedisCluster):
    async def aclose(self) -> None:
        """Close what looking for the nodes in vain has opened, too: redis-py leaves it open."""
        await super().aclose()
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")


def receive(connection: SyncConnection, timeout: float) -> Any | None:
    """What a subscribed connection brings next; ``None`` if nothing does for ``timeout`` seconds.

    Raises what redis-py raises when the connection is lost or the server refuses.
    """
    timeout = max(0.0, timeout)
    if not _WAITS_FOR_REPLIES:
        return connection.read_response() if connection.can_read(timeout) else None
    try:
        return connection.read_response(timeout=timeout, disconnect_on_error=False)
    except redis.TimeoutError:
        return None


async def heeding_cancellation(work: Awaitable[T]) -> T:
    """Await ``work``; if the task was cancelled meanwhile, be cancelled.

    redis-py sends through ``asyncio.wait_for``, which on Python 3.11 forgets a cancellation that
    arrives together with what it waits for (python/cpython#86296): the task would go on.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    result = await work
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError(
            f"the store URL {address} has an option in its query that redis-py refuses: {error}"
        ) from None


def _options(address: Address, settings: StreamsSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": settings.socket_timeout,
        "socket_connect_timeout": settings.connect_timeout,
        "client_name": "celery-streams",
        **_UNINTRODUCED,
    }
    if not address.url.startswith("unix:"):
        options["socket_keepalive"] = True
    return options
