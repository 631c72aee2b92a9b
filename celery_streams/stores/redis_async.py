"""The Redis store for event loops: the asyncio shell around the same commands."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
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
        self._settings = settings
        self._commands = Commands(layout, settings)

    async def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        result = (await self.append_many([Append(slot, batch, producer, credentials)]))[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """See :meth:`celery_streams.contracts.Store.append_many`. One round trip a node."""
        return await self._link.call_many(
            [self._commands.append(append) for append in appends],
            wait_replicas=self._settings.wait_replicas,
        )

    async def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""
        opening = await self._link.call(self._commands.read(slot, offset, limit))
        if opening.complete:
            return opening.page
        return opening.joined(await self._link.call_many(self._commands.read_on(slot, opening)))

    async def follow(self, slot: Slot, offset: int, *, idle: float) -> AsyncIterator[Page]:
        """See :meth:`celery_streams.stores.redis.RedisStore.follow`."""
        cursor = Cursor(slot, offset)
        due = time.monotonic() + idle
        live: AsyncSubscription | None = None
        async with AsyncExitStack() as stack:
            while True:
                page, step = cursor.from_log(await self.read(slot, cursor.offset))
                if page.entries or step is Next.STOP:
                    yield page
                    due = time.monotonic() + idle
                if step is Next.LISTEN and live is None:
                    live = await AsyncSubscription.open(self._link, self._layout.live(slot))
                    stack.push_async_callback(live.close)
                    continue
                while step is Next.LISTEN and live is not None:
                    message = await live.get(due - time.monotonic())
                    if message is None:
                        yield Page((), cursor.head)
                        due = time.monotonic() + idle
                        break
                    fresh, step = cursor.from_live(message)
                    if fresh is not None:
                        yield fresh
                        due = time.monotonic() + idle
                if step is Next.STOP:
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
