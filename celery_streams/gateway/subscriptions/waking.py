"""Wakes and their deliveries: by webhook, into a wake stream, as a Celery task.

Whoever is handed a wake by a script delivers it, and nobody else does. If that process dies, the
lease runs out, and whoever looks next is handed the next one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import quote

from celery_streams.contracts import JSON
from celery_streams.errors import StoreUnavailable, StreamError
from celery_streams.gateway import wire
from celery_streams.gateway.subscriptions.outbound import Outbound
from celery_streams.gateway.subscriptions.registry import Known, Registry
from celery_streams.protocol import Post, ProtocolStore
from celery_streams.stores.patterns import slot_at
from celery_streams.subscriptions.commands import Linked, Outcome, Update, Wake
from celery_streams.subscriptions.store import SubscriptionStore
from celery_streams.subscriptions.tasks import RESEND_MS

logger = logging.getLogger("celery_streams.gateway")

#: Deliveries that one process has under way at once.
_DELIVERIES = 64

SendTask = Callable[[str, str | None, dict[str, Any]], Awaitable[None]]


class DeliveryFailed(Exception):
    """A wake did not arrive; the message says why."""


class Waker:
    """Marks streams, and delivers the wakes that come of it. On one event loop."""

    def __init__(
        self,
        store: SubscriptionStore,
        streams: ProtocolStore,
        registry: Registry,
        outbound: Outbound,
        send_task: SendTask,
    ) -> None:
        self.store = store
        self._streams = streams
        self.registry = registry
        self._outbound = outbound
        self._send_task = send_task
        self._room = asyncio.Semaphore(_DELIVERIES)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def appended(self, path: str, start: int, end: int) -> None:
        """Somebody has appended to ``path`` here. Never fails: the dispatcher looks, too."""
        if not self.registry.known:
            return
        for known, link in list(self.registry.matching(path)):
            try:
                outcome = await self.mark(known.id, [Update(path, end, "", link and "?")])
                if outcome.verdict == "UNLINKED":
                    # What is newer than the subscription is pending from its beginning.
                    opened_at = await self.store.index.opened_at(slot_at(path))
                    newer = opened_at is None or opened_at * 1000 >= known.record.created_ms
                    await self.mark(known.id, [Update(path, end, "", "g", 0 if newer else start)])
            except StreamError as error:
                logger.warning("cannot wake subscription %s yet: %s", known.id, error)

    async def mark(self, subscription_id: str, updates: Iterable[Update] = ()) -> Outcome:
        """Note how far streams have got; deliver the wake that comes of it."""
        outcome = await self.store.link.call(self.store.commands.mark(subscription_id, updates))
        self.took(subscription_id, outcome)
        return outcome

    async def look_after(self, ids: list[str]) -> None:
        """Wake whoever is due."""
        calls = [self.store.commands.mark(each) for each in ids]
        outcomes = await self.store.link.call_many(calls)
        for subscription_id, outcome in zip(ids, outcomes, strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            self.took(subscription_id, outcome)

    def took(self, subscription_id: str, outcome: Outcome) -> None:
        """Go on from what a script has answered: deliver the wake it has handed over."""
        self.watch(subscription_id, outcome)
        if outcome.streams and not self._closed:
            wake = Wake(subscription_id, outcome.wake_id, outcome.generation)
            self._spawn(self._deliver(wake, outcome.streams))

    def watch(self, subscription_id: str, outcome: Outcome) -> None:
        """Look again when that is due."""
        if self._closed:
            return
        timer = self._timers.pop(subscription_id, None)
        if timer is not None:
            timer.cancel()
        if outcome.due_ms is not None and outcome.verdict != "MISSING":
            loop, delay = asyncio.get_running_loop(), outcome.due_ms / 1000 + 0.01
            self._timers[subscription_id] = loop.call_later(delay, self._due, subscription_id)

    async def aclose(self) -> None:
        """Stop. What is under way is not lost: its lease runs out."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _due(self, subscription_id: str) -> None:
        self._timers.pop(subscription_id, None)
        self._spawn(self._look_again(subscription_id))

    async def _look_again(self, subscription_id: str) -> None:
        try:
            await self.mark(subscription_id)
        except StreamError as error:
            logger.info("cannot look after subscription %s: %s", subscription_id, error)

    async def _deliver(self, wake: Wake, streams: tuple[Linked, ...]) -> None:
        store = self.store
        try:
            async with self._room:
                known = await self._known(wake.subscription_id)
                if known is None:
                    return
                try:
                    outcome = await self._pass_on(known, wake, streams)
                except StoreUnavailable:
                    raise
                except (DeliveryFailed, StreamError) as error:
                    logger.warning(
                        "subscription %s: wake %d was not delivered: %s",
                        wake.subscription_id, wake.generation, error,
                    )  # fmt: skip
                    outcome = await store.link.call(store.commands.fail(wake))
            self.took(wake.subscription_id, outcome)
        except StreamError as error:
            logger.warning("subscription %s: %s", wake.subscription_id, error)
        except Exception:
            logger.exception("subscription %s: a delivery failed", wake.subscription_id)

    async def _known(self, subscription_id: str) -> Known | None:
        if subscription_id not in self.registry.known:
            await self.registry.refresh()
        return self.registry.known.get(subscription_id)

    async def _pass_on(self, known: Known, wake: Wake, streams: tuple[Linked, ...]) -> Outcome:
        """Deliver a wake. Raises :class:`DeliveryFailed`."""
        store, configuration = self.store, known.configuration
        if configuration.type == "webhook":
            if await self._webhook(known, wake, streams):
                acks = [(each.path, each.tail, None) for each in streams]
                return await store.link.call(store.commands.ack(wake, acks, done=True))
            return await store.link.call(store.commands.sent(wake))
        if configuration.type == "pull-wake":
            assert configuration.wake_stream is not None
            await self._wake_event(configuration.wake_stream, wake, streams[0].path)
            return await store.link.call(store.commands.sent(wake))
        assert configuration.task is not None
        body = await self._body(known, wake, streams)
        try:
            await self._send_task(configuration.task, configuration.queue, body)
        except Exception as error:  # a broker's; there are as many kinds as brokers
            raise DeliveryFailed(f"{type(error).__name__}: {error}") from error
        return await store.link.call(store.commands.sent(wake, RESEND_MS))

    async def _webhook(self, known: Known, wake: Wake, streams: tuple[Linked, ...]) -> bool:
        """Post a wake; answers whether the receiver is done with it already."""
        configuration = known.configuration
        assert configuration.url is not None
        body = json.dumps(await self._body(known, wake, streams)).encode()
        keys = await self.store.keys()
        headers = {"content-type": JSON, "webhook-signature": keys.sign(body)}
        # Not beyond the lease: then the next wake is on its way.
        most = configuration.lease_ttl_ms / 1000
        try:
            status, answer = await self._outbound.post(configuration.url, body, headers, most)
        except Exception as error:
            raise DeliveryFailed(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if not 200 <= status < 300:
            raise DeliveryFailed(f"the receiver answered {status}")
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and document.get("done") is True

    async def _wake_event(self, wake_stream: str, wake: Wake, path: str) -> None:
        event = {
            "type": "wake",
            "subscription_id": wake.subscription_id,
            "stream": path,
            "generation": wake.generation,
            "ts": int(time.time() * 1000),
        }
        chunk = json.dumps(event, ensure_ascii=False).encode()
        posted = await self._streams.post(slot_at(wake_stream), Post(JSON, [chunk]))
        await self.appended(wake_stream, posted.end - 1, posted.end)

    async def _body(self, known: Known, wake: Wake, streams: tuple[Linked, ...]) -> dict[str, Any]:
        base = known.record.base
        keys = await self.store.keys()
        return {
            "subscription_id": wake.subscription_id,
            "wake_id": wake.wake_id,
            "generation": wake.generation,
            "streams": [described(each) for each in streams],
            "callback_url": callback_url(base, wake.subscription_id),
            "callback_token": keys.token(wake, "callback"),
        }


def callback_url(base: str, subscription_id: str) -> str | None:
    """Where a webhook's receiver calls back; ``None``: no client has said where we are."""
    if not base:
        return None
    return f"{base}subscriptions/{quote(subscription_id, safe='')}/callback"


def described(linked: Linked) -> dict[str, Any]:
    """A stream of a wake, as the protocol shows it."""
    return {
        "path": linked.path,
        "link_type": linked.link_type,
        "acked_offset": wire.offset_token(linked.acked),
        "tail_offset": wire.offset_token(linked.tail),
        "has_pending": linked.tail > linked.acked,
    }
