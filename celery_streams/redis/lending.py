"""Connections of one event loop, lent for one exchange at a time.

redis-py's own pool asks every connection it lends whether it is still good, and times each send
and each reply by itself: together more than an append costs otherwise. Here a connection that the
server has closed shows by the end of its input, which the event loop has noticed by then, and one
timer covers the wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio as aioredis
import redis.exceptions as rx

from celery_streams.redis.calls import Arg, packed
from celery_streams.redis.connect import AsyncConnection


class Lender:
    """Lends connections; each reply may take ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._idle: dict[aioredis.ConnectionPool, list[AsyncConnection]] = {}
        self._busy = 0

    @property
    def connections(self) -> int:
        """How many are open, or being opened."""
        return self._busy + sum(len(idle) for idle in self._idle.values())

    async def exchange(
        self, pool: aioredis.ConnectionPool, commands: list[tuple[Arg, ...]]
    ) -> list[Any]:
        """Send commands to the pool's server and read as many replies; error replies are values.

        Cancelled, it leaves no connection behind.
        """
        idle = self._idle.setdefault(pool, [])
        connection = idle.pop() if idle else pool.connection_class(**pool.connection_kwargs)
        self._busy += 1
        try:
            if not _usable(connection):
                await self._reconnect(connection)
            replies: list[Any] = []
            async with asyncio.timeout(self._timeout) as patience:
                await connection.send_packed_command([packed(commands)], check_health=False)
                for place in range(len(commands)):
                    if place:
                        patience.reschedule(asyncio.get_running_loop().time() + self._timeout)
                    try:
                        replies.append(await connection.read_response(disconnect_on_error=False))
                    except rx.ResponseError as error:
                        replies.append(error)
        except BaseException as error:
            # A reply may be on its way that nobody waits for.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise rx.TimeoutError(f"no reply in {self._timeout:g} s") from error
            raise
        else:
            idle.append(connection)
            return replies
        finally:
            self._busy -= 1

    async def close(self) -> None:
        """Close the connections that are not lent."""
        lent, self._idle = self._idle, {}
        for idle in lent.values():
            for connection in idle:
                await connection.disconnect(nowait=True)

    async def _reconnect(self, connection: AsyncConnection) -> None:
        await connection.disconnect(nowait=True)
        connection.socket_timeout = self._timeout  # of each step of saying hello
        await connection.connect()
        connection.socket_timeout = None


def _usable(connection: AsyncConnection) -> bool:
    """Whether it is open, as far as the event loop knows."""
    reader: asyncio.StreamReader | None = connection._reader
    return connection.is_connected and reader is not None and not reader.at_eof()
