"""The S2 store for threads: each call runs on the process's event loop for S2."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import cast

from celery_streams.contracts import (
    Answer,
    Append,
    Appended,
    AsyncStore,
    Attempt,
    Batch,
    Credentials,
    Head,
    Page,
    Producer,
)
from celery_streams.errors import ConfigurationError
from celery_streams.protocol import ProtocolStore
from celery_streams.redis.address import Address
from celery_streams.redis.client import AsyncRedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.commands import CLOSED
from celery_streams.stores.cursor import PAGE_LIMIT
from celery_streams.stores.s2.address import S2Address
from celery_streams.stores.s2.asynchronous import AsyncS2Store
from celery_streams.stores.s2.client import check_environment
from celery_streams.stores.s2.loop import LoopThread
from celery_streams.stores.s2.serving import S2ProtocolStore
from celery_streams.stores.s2.state import PAYLOAD_BYTES


class S2Store:
    """A :class:`~celery_streams.contracts.Store` on S2, or on s2-lite.

    One S2 stream a slot, one record a batch, several batches in flight. What it promises is what
    the Redis store promises, with these exceptions:

    - Chunks expire ``retention`` after they were written, not after the stream was closed.
    - Fences are kept for each stream, not for a run's streams together; those of other runs
      than the stream's own for the 32 that wrote last.
    - Credentials are checked by S2, perhaps only when a session of appends begins: a revoked token
      may be accepted for ten seconds more.
    - Several processes that write to one stream without rest take turns of some appends each.

    Thread-safe, and usable in a forked child: nothing is opened before it is needed, and
    nothing that was opened crosses a fork.

    Raises:
        ConfigurationError: the SDK is missing, or gevent or eventlet have replaced sockets.
    """

    #: The largest batch that a record takes, framed; and the largest chunk, whatever its type.
    max_payload_bytes = PAYLOAD_BYTES
    max_chunk_bytes = PAYLOAD_BYTES - 4
    #: Enough for one every 5 ms, and round trips of 300 ms.
    max_in_flight = 64

    def __init__(
        self, address: S2Address, settings: StreamsSettings, runs: Address | None = None
    ) -> None:
        check_environment()
        self.address = address
        self._runs = runs
        self._settings = settings
        self._thread = LoopThread()
        self._stores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncS2Store] = (
            weakref.WeakKeyDictionary()
        )

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        result = self.append_many([Append(slot, batch, producer, credentials)])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """See :meth:`celery_streams.contracts.Store.append_many`."""

        async def run() -> list[Appended | Exception]:
            return await self._here().append_many(appends)

        return self._thread.run(run())

    def submit(self, appends: Sequence[Append], answer: Answer) -> None:
        """See :meth:`celery_streams.contracts.PipelinedStore.submit`."""
        self._thread.call(lambda: self._here().submit(appends, answer))

    def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""

        async def run() -> Page:
            return await self._here().read(slot, offset, limit=limit)

        return self._thread.run(run())

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        """See :meth:`celery_streams.contracts.Store.follow`."""
        pages: AsyncIterator[Page] | None = None

        async def following() -> Page | None:
            nonlocal pages
            if pages is None:
                pages = self._here().follow(slot, offset, idle=idle)
            return await anext(pages, None)

        async def ending() -> None:
            if pages is not None:
                with suppress(RuntimeError):  # cancelled while it was asked for a page
                    await cast("AsyncS2Store", pages).aclose()

        try:
            while (page := self._thread.run(following())) is not None:
                yield page
        finally:
            self._thread.run(ending())

    def head(self, slot: Slot) -> Head:
        """See :meth:`celery_streams.contracts.Store.head`."""

        async def run() -> Head:
            return await self._here().head(slot)

        return self._thread.run(run())

    def close(
        self, slot: Slot, credentials: Credentials, attempt: Attempt, *, state: str = CLOSED
    ) -> Head:
        """See :meth:`celery_streams.contracts.Store.close`."""

        async def run() -> Head:
            return await self._here().close(slot, credentials, attempt, state=state)

        return self._thread.run(run())

    def delete(self, slot: Slot) -> bool:
        """See :meth:`celery_streams.contracts.Store.delete`."""

        async def run() -> bool:
            return await self._here().delete(slot)

        return self._thread.run(run())

    def for_event_loop(self) -> AsyncStore:
        """The running event loop's store."""
        return self._here()

    def for_gateway(self) -> ProtocolStore:
        """The running event loop's store, as the gateway uses it.

        Raises:
            ConfigurationError: the store does not know of a Redis for what is not chunks.
        """
        if self._runs is None:
            raise ConfigurationError(
                "the gateway needs a Redis beside S2, for runs and what clients create: give "
                "S2Store its address, or set CELERY_STREAMS_URL to s2://..."
            )
        settings = self._settings
        link = AsyncRedisLink(self._runs, settings, settings.gateway_redis_connections)
        return S2ProtocolStore(self._here(), link, Layout(settings.prefix), settings)

    def shut(self) -> None:
        """Close the connections of the process's own event loop, and end it."""

        async def run() -> None:
            await self._here().aclose()

        self._thread.stop(run)

    def _here(self) -> AsyncS2Store:
        loop = asyncio.get_running_loop()
        store = self._stores.get(loop)
        if store is None:
            store = self._stores[loop] = AsyncS2Store(self.address, self._settings)
        return store
