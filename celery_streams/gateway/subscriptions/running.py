"""Everything about subscriptions that runs on one event loop, put together."""

from __future__ import annotations

import asyncio
from typing import Any

from celery_streams.app import Streams
from celery_streams.gateway.subscriptions.dispatcher import Dispatcher
from celery_streams.gateway.subscriptions.following import Following
from celery_streams.gateway.subscriptions.outbound import Outbound
from celery_streams.gateway.subscriptions.registry import Registry
from celery_streams.gateway.subscriptions.waking import Waker
from celery_streams.protocol import ProtocolStore


class Subscriptions:
    """The subscriptions as one gateway process has them: started by :meth:`start`."""

    def __init__(
        self, streams: Streams, store: ProtocolStore, outbound: Outbound | None = None
    ) -> None:
        settings = streams.settings

        async def send_task(task: str, queue: str | None, body: dict[str, Any]) -> None:
            await asyncio.to_thread(streams.send_wake, task, queue, body)

        self.store = streams.runtime.subscription_store()
        self.outbound = outbound or Outbound(settings)
        self.registry = Registry(self.store)
        self.waker = Waker(self.store, store, self.registry, self.outbound, send_task)
        self._feed = store.feed()
        self.dispatcher = Dispatcher(
            Following(self.waker, self._feed, recheck=settings.recheck_interval)
        )
        self._running: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, streams: Streams, store: ProtocolStore) -> Subscriptions | None:
        """The subscriptions of ``streams``; ``None``: its store, somebody else's, has none."""
        return cls(streams, store) if streams.runtime.has_subscriptions else None

    def start(self) -> None:
        """Look after subscriptions from now on."""
        if self._running is None:
            self._running = asyncio.create_task(self.dispatcher.run())

    async def aclose(self) -> None:
        """Stop; another process goes on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.waker.aclose()
        await self._feed.aclose()
        await self.outbound.aclose()
        await self.store.aclose()
