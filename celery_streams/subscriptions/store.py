"""Subscriptions on one event loop: what takes more than one script."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from celery_streams.contracts import Head
from celery_streams.errors import StreamError, StreamNotFound
from celery_streams.protocol import StreamDeleted
from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.commands import Commands
from celery_streams.stores.index import StreamIndex
from celery_streams.stores.patterns import Pattern, slot_at
from celery_streams.subscriptions.commands import (
    Linked,
    Outcome,
    Record,
    SubscriptionCommands,
    Update,
)
from celery_streams.subscriptions.config import Configuration
from celery_streams.subscriptions.keys import SubscriptionKeys

logger = logging.getLogger("celery_streams.subscriptions")

T = TypeVar("T")

#: Streams in one call.
PAGE = 500


class SubscriptionConflict(StreamError):
    """There is a subscription of that name, and it is another one."""


class SubscriptionNotFound(StreamError, LookupError):
    """There is no such subscription (any more)."""


class SubscriptionStore:
    """The subscriptions of one deployment."""

    def __init__(self, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self.link = link
        self.commands = SubscriptionCommands(layout)
        self.index = StreamIndex(link, layout, settings)
        self._settings = settings
        self._reads = Commands(layout, settings)
        self._keys: SubscriptionKeys | None = None

    async def create(
        self, subscription_id: str, configuration: Configuration, base: str = ""
    ) -> bool:
        """Create it, or find it just as described (``False``), and link what exists.

        ``base`` is the URL below which its callbacks are.

        Raises:
            SubscriptionConflict: it exists with another configuration.
        """
        # Announced first: one of which nobody heard would never wake.
        await self._announce(subscription_id, exists=True)
        create = self.commands.create(subscription_id, configuration, base)
        verdict = await self.link.call(create)
        if verdict == "CONFLICT":
            raise SubscriptionConflict(
                f"there is a subscription {subscription_id!r} already, with another configuration"
            )
        record = await self.record(subscription_id)
        if not record.ready:
            await self.link_existing(subscription_id, record)
        await self._announce(subscription_id, exists=True)
        return verdict == "CREATED"

    async def link_existing(self, subscription_id: str, record: Record) -> None:
        """Link the streams there are at their present ends; all that comes is pending."""
        configuration = record.configuration
        await self.add(subscription_id, configuration.streams, announce=False)
        if configuration.pattern is not None:
            pattern = Pattern.parse(configuration.pattern)
            async for page in self.index.scan(pattern):
                found = {
                    str(each.slot): each.opened_at * 1000 >= record.created_ms
                    for each in page
                    if str(each.slot) != configuration.wake_stream
                }
                updates = await self.look(list(found), "g")
                # A stream that is newer than the subscription is pending from its beginning.
                updates = [
                    replace(each, acked=0) if found[each.path] else each
                    for each in updates
                    if each.tail is not None
                ]
                await self.note(subscription_id, updates)
        await self.link.call(self.commands.ready(subscription_id))

    async def record(self, subscription_id: str) -> Record:
        """What is kept of it. Raises :class:`SubscriptionNotFound`."""
        record = (await self.records([subscription_id]))[0]
        if record is None:
            raise SubscriptionNotFound(f"there is no subscription {subscription_id!r}")
        return record

    async def records(self, ids: Sequence[str]) -> list[Record | None]:
        """What is kept of several; ``None`` where there is none."""
        calls: list[Call[Any]] = []
        for each in ids:
            calls += self.commands.record(each)
        replies = await self._all(calls)
        return [
            None if record is None else replace(record, explicit=explicit)
            for record, explicit in zip(replies[::2], replies[1::2], strict=True)
        ]

    async def links(self, subscription_id: str) -> AsyncIterator[list[Linked]]:
        """Its links, page by page; one that changes meanwhile may come twice."""
        cursor = 0
        while True:
            cursor, page = await self.link.call(self.commands.links(subscription_id, cursor))
            if page:
                yield page
            if cursor == 0:
                return

    async def remove(self, subscription_id: str) -> bool:
        """Delete it; ``False`` if there was none."""
        outcome = await self.link.call(self.commands.remove(subscription_id))
        await self._announce(subscription_id, exists=False)
        return outcome.verdict != "MISSING"

    async def add(
        self, subscription_id: str, paths: Sequence[str], *, announce: bool = True
    ) -> None:
        """Link streams explicitly, at their present ends.

        Raises:
            SubscriptionNotFound: there is no such subscription.
        """
        for at in range(0, len(paths), PAGE):
            updates = await self.look(paths[at : at + PAGE], "e")
            _existing(subscription_id, await self.note(subscription_id, updates))
        if announce:
            await self._announce(subscription_id, exists=True)

    async def discard(self, subscription_id: str, path: str) -> None:
        """Remove an explicit link. Raises :class:`SubscriptionNotFound`."""
        outcome = await self.link.call(self.commands.unlink(subscription_id, [path]))
        _existing(subscription_id, outcome)
        await self._announce(subscription_id, exists=True)

    async def look(self, paths: Sequence[str], link: str = "") -> list[Update]:
        """How far streams have got, to be linked as ``link`` from there."""
        heads = await self.heads([slot_at(path) for path in paths])
        return [updated(path, head, link) for path, head in zip(paths, heads, strict=True)]

    async def heads(self, slots: Sequence[Slot]) -> list[Head | None]:
        """The streams' heads; ``None`` where there is no stream."""
        heads: list[Head | None] = []
        for head in await self.link.call_many([self._reads.head(slot) for slot in slots]):
            if isinstance(head, StreamNotFound | StreamDeleted):
                heads.append(None)
            elif isinstance(head, Exception):
                raise head
            else:
                heads.append(head)
        return heads

    async def note(self, subscription_id: str, updates: Iterable[Update]) -> Outcome:
        """Note how far streams have got; whoever looks next wakes."""
        return await self.link.call(self.commands.mark(subscription_id, updates, hand_over=False))

    async def refresh(self, subscription_id: str) -> None:
        """Look at all its streams now."""
        async for page in self.links(subscription_id):
            await self.note(subscription_id, await self.look([each.path for each in page]))

    async def keys(self) -> SubscriptionKeys:
        """The deployment's keys."""
        if self._keys is None:
            settings = self._settings
            secrets = [each for each in (settings.secret, *settings.token_secrets) if each]
            if settings.secret is not None:
                self._keys = SubscriptionKeys([s.get_secret_value().encode() for s in secrets])
            else:
                _, kept = await self._all(self.commands.key())
                self._keys = SubscriptionKeys([kept])
        return self._keys

    async def aclose(self) -> None:
        """Close the connections."""
        await self.link.close()

    async def _announce(self, subscription_id: str, *, exists: bool) -> None:
        await self.link.call(self.commands.announce(subscription_id, exists=exists))

    async def _all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        results = await self.link.call_many(calls)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results


def updated(path: str, head: Head | None, link: str = "") -> Update:
    """What a stream's head says of it."""
    if head is None:
        return Update(path, None, "", link)
    return Update(path, head.end, head.identity, link, head.end)


def run_alone(
    make: Callable[[], SubscriptionStore],
    work: Callable[[SubscriptionStore], Coroutine[Any, Any, T]],
) -> T:
    """Do ``work`` on an event loop of its own, whether or not one is running here."""

    async def main() -> T:
        store = make()
        try:
            return await work(store)
        finally:
            await store.aclose()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, main()).result()


def _existing(subscription_id: str, outcome: Outcome) -> None:
    if outcome.verdict == "MISSING":
        raise SubscriptionNotFound(f"there is no subscription {subscription_id!r}")
