"""The Redis store for event loops: the asyncio shell around the same commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from celery_streams.contracts import (
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Head,
    Page,
    Producer,
)
from celery_streams.redis.client import AsyncRedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.commands import Commands
from celery_streams.stores.cursor import PAGE_LIMIT, Cursor, Next
from celery_streams.stores.subscription import AsyncSubscription


class AsyncRedisStore:
    """:class:`~celery_streams.stores.redis.RedisStore` for one event loop."""

    def __init__(self, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._commands = Commands(layout, settings)

    async def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        return await self._link.call(
            self._commands.append(Append(slot, batch, producer, credentials))
        )

    async def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""
        return await self._link.call(self._commands.read(slot, offset, limit))

    async def follow(self, slot: Slot, offset: int, *, idle: float) -> AsyncIterator[Page]:
        """See :meth:`celery_streams.stores.redis.RedisStore.follow`."""
        cursor = Cursor(slot, offset)
        live: AsyncSubscription | None = None
        async with AsyncExitStack() as stack:
            while True:
                page, step = cursor.from_log(await self.read(slot, cursor.offset))
                if page.entries:
                    yield page
                if step is Next.LISTEN and live is None:
                    live = await AsyncSubscription.open(self._link, self._layout.live(slot))
                    stack.push_async_callback(live.close)
                    continue
                while step is Next.LISTEN and live is not None:
                    message = await live.get(idle)
                    if message is None:
                        yield Page((), cursor.head)
                        break
                    fresh, step = cursor.from_live(message)
                    if fresh is not None:
                        yield fresh
                if step is Next.STOP:
                    if not page.entries and cursor.head is not None:
                        yield Page((), cursor.head)
                    return

    async def head(self, slot: Slot) -> Head:
        """See :meth:`celery_streams.contracts.Store.head`."""
        return await self._link.call(self._commands.head(slot))

    async def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        """See :meth:`celery_streams.contracts.Store.close`."""
        return await self._link.call(self._commands.close(slot, credentials, attempt))

    async def delete(self, slot: Slot) -> bool:
        """See :meth:`celery_streams.contracts.Store.delete`."""
        return await self._link.call(self._commands.delete(slot))

    async def aclose(self) -> None:
        """Close the loop's connections."""
        await self._link.close()
