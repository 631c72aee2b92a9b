"""What the leading dispatcher follows: the streams that subscriptions link, and new ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from celery_streams.contracts import Entry, Head
from celery_streams.errors import StoreUnavailable
from celery_streams.gateway.subscriptions.waking import Waker
from celery_streams.protocol import Ended, Feed, LiveEvent, RunStateChanged
from celery_streams.slots import Scope, Slot
from celery_streams.stores.index import Recorded
from celery_streams.stores.patterns import slot_at
from celery_streams.subscriptions.commands import Update
from celery_streams.subscriptions.store import PAGE, updated

logger = logging.getLogger("celery_streams.gateway")

#: Seconds for which live events gather before they are noted.
_GATHER = 0.02
#: Seconds by which looks at the index overlap: its clock may be another node's.
_OVERLAP = 2.0
#: Entries of the index looked at in one go.
_FOUND = 5000


class Following:
    """Streams listened to, and how far they have got since the last note.

    ``recheck``: seconds of silence after which a stream is looked at.
    """

    def __init__(self, waker: Waker, feed: Feed, recheck: float) -> None:
        self.heard: dict[Slot, float] = {}
        self.waker = waker
        self.feed = feed
        self._store = waker.store
        self._registry = waker.registry
        self._recheck = recheck
        # How far each has got; None: look at it.
        self._dirty: dict[Slot, int | None] = {}
        self._noting: asyncio.Task[None] | None = None
        self._seen: dict[Scope, float] = {}
        self._found: dict[Slot, float] = {}
        self._kept: dict[Scope, float] = {}

    async def begin(self) -> None:
        """Take over from whoever led before, as of where they had got."""
        seen = await self._store.link.call(self._store.commands.seen())
        oldest = min(each.record.created_ms for each in self._registry.known.values()) / 1000
        scopes: tuple[Scope, ...] = ("run", "session", "path")
        self._seen = {scope: seen.get(scope, oldest) for scope in scopes}
        self._found.clear()

    async def end(self) -> None:
        """Follow nothing any more."""
        slots = list(self.heard)
        self.heard.clear()
        self._dirty.clear()
        for slot in slots:
            await self.feed.ignore(slot)

    def rewind(self, opened_at: float) -> None:
        """Look at the index again from there: a subscription is new."""
        for scope, seen in self._seen.items():
            self._seen[scope] = min(seen, opened_at)
        self._found.clear()

    async def sync(self, subscription_id: str) -> None:
        """Compare a subscription's links with their streams, and follow those."""
        async for page in self._store.links(subscription_id):
            slots = [slot_at(each.path) for each in page]
            heads = await self._store.heads(slots)
            updates = [updated(each.path, head) for each, head in zip(page, heads, strict=True)]
            await self.waker.mark(subscription_id, updates)
            await self._follow(
                slot
                for slot, each, head in zip(slots, page, heads, strict=True)
                if (head is None and each.link != "g") or (head is not None and not head.closed)
            )

    async def prune(self) -> None:
        """Follow no longer what concerns nobody."""
        for slot in list(self.heard):
            if not any(self._registry.matching(str(slot))):
                await self._ignore(slot)

    async def discover(self) -> None:
        """Link streams that were opened since the last look, from their beginning."""
        for scope in self._registry.scopes & self._seen.keys():
            page = await self._store.index.since(scope, self._seen[scope] - _OVERLAP, _FOUND)
            new = [each for each in page if self._found.get(each.slot) != each.opened_at]
            matching = [each for each in new if any(self._registry.matching(str(each.slot)))]
            for at in range(0, len(matching), PAGE):
                await self._link(matching[at : at + PAGE])
            if page:
                latest = page[-1].opened_at
                full = len(page) == _FOUND
                self._seen[scope] = max(self._seen[scope], latest + (_OVERLAP if full else 0))
            for each in new:
                self._found[each.slot] = each.opened_at
        if len(self._found) > 2 * _FOUND:
            latest = min(self._seen.values()) - 2 * _OVERLAP
            self._found = {slot: at for slot, at in self._found.items() if at >= latest}
        if self._seen != self._kept:
            await self._store.link.call(self._store.commands.keep_seen(self._seen))
            self._kept = dict(self._seen)

    async def recheck(self) -> None:
        """Look at streams that have been silent: a message may have been lost."""
        now = time.monotonic()
        for slot, heard_at in self.heard.items():
            if now - heard_at >= self._recheck:
                self.heard[slot] = now
                self._note(slot, None)

    async def _link(self, found: list[Recorded]) -> None:
        slots = [each.slot for each in found]
        await self._follow(slots)
        heads = await self._store.heads(slots)
        opened = {each.slot: each.opened_at for each in found}
        await self._mark(dict(zip(slots, heads, strict=True)), opened)

    async def _follow(self, slots: Iterable[Slot]) -> None:
        new = [slot for slot in slots if slot not in self.heard]
        for slot in new:
            self.heard[slot] = time.monotonic()
        for at in range(0, len(new), PAGE):
            some = new[at : at + PAGE]
            results = await asyncio.gather(
                *(self.feed.listen(slot, partial(self._deliver, slot)) for slot in some),
                return_exceptions=True,
            )
            for slot, result in zip(some, results, strict=True):
                if isinstance(result, BaseException):
                    self.heard.pop(slot, None)  # with the next sync, or the next look
                    logger.info("cannot follow %s yet: %s", slot, result)
                else:
                    self._note(slot, None)

    async def _ignore(self, slot: Slot) -> None:
        if self.heard.pop(slot, None) is not None:
            await self.feed.ignore(slot)

    def _deliver(self, slot: Slot, event: LiveEvent) -> None:
        if slot not in self.heard:
            return
        self.heard[slot] = time.monotonic()
        match event:
            case Entry():
                self._note(slot, event.end)
            case Ended(end, _):
                self._note(slot, end)
            case RunStateChanged():
                pass  # it brings nothing to process
            case _:
                self._note(slot, None)

    def _note(self, slot: Slot, end: int | None) -> None:
        if slot in self._dirty and self._dirty[slot] is None:
            return
        self._dirty[slot] = end
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_all())

    async def _note_all(self) -> None:
        while True:
            await asyncio.sleep(_GATHER)
            if not self._dirty:
                return
            dirty, self._dirty = self._dirty, {}
            try:
                known: dict[Slot, int | Head | None] = {}
                unknown = []
                for slot, end in dirty.items():
                    if end is None:
                        unknown.append(slot)
                    else:
                        known[slot] = end
                for at in range(0, len(unknown), PAGE):
                    some = unknown[at : at + PAGE]
                    known.update(zip(some, await self._store.heads(some), strict=True))
                await self._mark(known)
            except StoreUnavailable as error:
                logger.info("cannot note what streams have got: %s", error)
                for slot in dirty:
                    self._dirty.setdefault(slot, None)
                await asyncio.sleep(1.0)
            except Exception:
                logger.exception("cannot note what streams have got")

    async def _mark(
        self, known: Mapping[Slot, int | Head | None], opened: Mapping[Slot, float] | None = None
    ) -> None:
        """Tell the subscriptions how far streams have got; link those that were ``opened``."""
        updates: dict[str, list[Update]] = defaultdict(list)
        finished = []
        for slot, state in known.items():
            path = str(slot)
            for subscription, link in self._registry.matching(path):
                if isinstance(state, int):
                    update = Update(path, state)
                else:
                    update = updated(path, state, link if opened else "")
                # What is older than the subscription has been processed, as far as it goes.
                if opened and opened[slot] * 1000 >= subscription.record.created_ms:
                    update = replace(update, acked=0)
                updates[subscription.id].append(update)
            if isinstance(state, Head) and state.closed is not None:
                finished.append(slot)
        for subscription_id, some in updates.items():
            for at in range(0, len(some), PAGE):
                await self.waker.mark(subscription_id, some[at : at + PAGE])
        for slot in finished:
            await self._ignore(slot)
