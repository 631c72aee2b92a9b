"""Who notices what no gateway was asked to append: one process for all, while it lives.

Tasks write to the store directly. The leader listens to every stream that a subscription links
(over the feed's one connection a node), looks at the index of streams for new ones, and at
silent streams now and then. Two leaders for a moment do no harm: scripts decide who delivers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from celery_streams.errors import StoreUnavailable
from celery_streams.gateway.subscriptions.following import Following
from celery_streams.protocol import LiveEvent
from celery_streams.redis.layout import CONTROL
from celery_streams.redis.outages import Outage
from celery_streams.subscriptions.store import SubscriptionNotFound

logger = logging.getLogger("celery_streams.gateway")

#: Seconds between looks: at the index, for one who leads; at the list of subscriptions.
_LOOK = 0.25
_IDLE = 1.0
#: Seconds the lead lasts without being renewed, and between renewals.
_LEAD = 4.0
_RENEW = 1.0
#: Seconds between looks at every subscription, for leases and retries of processes that died.
_TEND = 2.0
#: Seconds between looks at every link of every subscription.
_SYNC = 60.0
#: Seconds after which a subscription whose creator died is finished by the leader.
_CREATION = 5.0


class Dispatcher:
    """Runs in every gateway process; only the leader's follows streams."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self._waker = following.waker
        self._feed = following.feed
        self._store = following.waker.store
        self._registry = following.waker.registry
        self._changed = asyncio.Event()
        self._outage = Outage(logger, "subscriptions")
        self._listening = False
        self._leading = False
        self._renew_at = self._tend_at = self._sync_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                pause = _IDLE
                try:
                    pause = await self._round()
                    self._outage.over()
                except StoreUnavailable as error:
                    self._outage.failed(error)
                except Exception:
                    logger.exception("a round of the dispatcher failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                self._changed.clear()
        finally:
            if self._leading:
                with suppress(Exception):
                    await self._store.link.call(self._store.commands.resign())

    def _stirred(self, _: LiveEvent) -> None:
        self._tend_at = 0.0
        self._changed.set()

    async def _round(self) -> float:
        if not self._listening:
            await self._feed.listen(CONTROL, self._stirred)
            self._listening = True
        before = set(self._registry.known)
        changed = await self._registry.refresh()
        if not self._registry.known:
            await self._stop_leading()
            return _IDLE
        now = time.monotonic()
        fresh = False
        if now >= self._renew_at:
            self._renew_at = now + _RENEW
            lead = self._store.commands.lead(round(_LEAD * 1000))
            leads = await self._store.link.call(lead)
            fresh = leads and not self._leading
            if not leads:
                await self._stop_leading()
            self._leading = leads
        if not self._leading:
            return _IDLE
        if fresh:
            await self.following.begin()
        await self._follow_changes(changed, set(self._registry.known) - before, now, fresh=fresh)
        await self.following.discover()
        await self.following.recheck()
        if now >= self._tend_at:
            self._tend_at = now + _TEND
            await self._waker.look_after(list(self._registry.known))
        return _LOOK

    async def _follow_changes(
        self, changed: set[str], new: set[str], now: float, *, fresh: bool
    ) -> None:
        if fresh or now >= self._sync_at:
            self._sync_at = now + _SYNC
            changed = set(self._registry.known)
        for subscription_id in changed:
            known = self._registry.known.get(subscription_id)
            if known is None:
                continue
            if subscription_id in new:
                self.following.rewind(known.record.created_ms / 1000)
            age = time.time() - known.record.created_ms / 1000
            with suppress(SubscriptionNotFound):  # deleted meanwhile: the next round knows
                if not known.record.ready and age > _CREATION:
                    await self._store.link_existing(subscription_id, known.record)
            await self.following.sync(subscription_id)
        if changed:
            await self.following.prune()

    async def _stop_leading(self) -> None:
        if self._leading:
            self._leading = False
            await self.following.end()
            await self._store.link.call(self._store.commands.resign())
