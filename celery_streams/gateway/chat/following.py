"""Sessions' ``out`` streams as they grow: one subscription for each session that is followed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from itertools import count

from celery_streams.contracts import Entry, Page
from celery_streams.errors import StoreUnavailable
from celery_streams.protocol import Feed, LiveEvent, ProtocolStore
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

#: Seconds between attempts to read while the store is away.
_PAUSE = 0.5


class _Follower:
    """One reader, and what was heard since it read the log."""

    def __init__(self, most: int) -> None:
        self.news = asyncio.Event()
        self.heard: deque[Entry] = deque()
        self._most = most
        self._size = 0

    def hear(self, event: LiveEvent) -> None:
        """Keep an entry for the reader; or let it read the log, if it is too slow for that."""
        if isinstance(event, Entry) and self._size < self._most:
            self.heard.append(event)
            self._size += len(event.payload)
        else:
            self.heard.clear()
            self._size = 0
        self.news.set()

    def take(self) -> list[Entry]:
        """What was heard."""
        taken = list(self.heard)
        self.heard.clear()
        self._size = 0
        self.news.clear()
        return taken


class SessionFeed:
    """Follows sessions, over as many connections as the store has nodes."""

    def __init__(self, store: ProtocolStore, settings: StreamsSettings) -> None:
        self._store = store
        self._feed: Feed = store.feed()
        self._followers: dict[Slot, set[_Follower]] = {}
        self._listening: dict[Slot, asyncio.Task[None]] = {}
        self._ignoring: set[asyncio.Task[None]] = set()
        self._reading: dict[tuple[Slot, int, int], asyncio.Task[Page]] = {}
        #: Changes with everything that is heard of a session.
        self._versions: dict[Slot, int] = {}
        self._counter = count()
        self._recheck = settings.recheck_interval
        self._buffer = settings.gateway_subscriber_buffer
        self.draining = False

    @property
    def followers(self) -> int:
        """How many readers there are."""
        return sum(len(each) for each in self._followers.values())

    async def entries(self, slot: Slot, offset: int) -> AsyncGenerator[Entry | None, None]:
        """Entries with chunks from ``offset`` on, for ever, or until the gateway drains.

        ``None`` says that nothing has come for ``recheck_interval`` seconds, and that the log has
        nothing either: it is read then, and wherever what is heard does not continue.

        Raises:
            OffsetGone: they were trimmed.
            StoreUnavailable: at the first read only; later the store is waited for.
        """
        follower = _Follower(self._buffer)
        await self._join(slot, follower)
        try:
            page: Page | None = await self._read(slot, offset)
            while not self.draining:
                for entry in page.entries if page else ():
                    yield entry
                    offset = entry.end
                behind = page is None or (
                    bool(page.entries) and page.head is not None and page.head.end > offset
                )
                idle = False
                while not (behind or idle or self.draining):
                    idle = not await self._news(follower)
                    heard = [] if idle else follower.take()
                    behind = not heard
                    for entry in heard:
                        if entry.end <= offset:
                            continue
                        if entry.start > offset:
                            behind = True
                            break
                        yield entry
                        offset = entry.end
                page = await self._read_again(slot, offset)
                if idle and page is not None and not page.entries:
                    yield None
        finally:
            self._leave(slot, follower)

    def drain(self) -> None:
        """End everything."""
        self.draining = True
        for followers in self._followers.values():
            for follower in followers:
                follower.news.set()

    async def aclose(self) -> None:
        """Stop."""
        self.drain()
        await self._feed.aclose()

    async def _news(self, follower: _Follower) -> bool:
        try:
            async with asyncio.timeout(self._recheck):
                await follower.news.wait()
        except TimeoutError:
            return False
        return True

    async def read(self, slot: Slot, offset: int) -> Page:
        """The log from ``offset`` on, as it is now. Raises OffsetGone, StoreUnavailable."""
        return await self._store.read(slot, offset)

    async def _read(self, slot: Slot, offset: int) -> Page:
        """The log. Readers that ask for the same at the same time share the answer.

        But not one that was asked for before something was heard: who has come since has not
        heard it, and would not find it there.
        """
        key = (slot, offset, self._versions.get(slot, -1))
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._store.read(slot, offset))
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    async def _read_again(self, slot: Slot, offset: int) -> Page | None:
        if self.draining:
            return None
        try:
            return await self._read(slot, offset)
        except StoreUnavailable:
            await asyncio.sleep(_PAUSE)
            return None

    async def _join(self, slot: Slot, follower: _Follower) -> None:
        followers = self._followers.setdefault(slot, set())
        followers.add(follower)
        self._versions.setdefault(slot, next(self._counter))
        listening = self._listening.get(slot)
        if listening is None:

            def deliver(event: LiveEvent) -> None:
                if slot in self._versions:
                    self._versions[slot] = next(self._counter)
                for each in self._followers.get(slot, ()):
                    each.hear(event)

            listening = asyncio.create_task(self._feed.listen(slot, deliver))
            self._listening[slot] = listening
        try:
            await asyncio.shield(listening)
        except BaseException:
            # A client that went away takes nothing from the others who wait for the same.
            if listening.done() and self._listening.get(slot) is listening:
                del self._listening[slot]
            self._leave(slot, follower)
            raise

    def _leave(self, slot: Slot, follower: _Follower) -> None:
        followers = self._followers.get(slot, set())
        followers.discard(follower)
        if followers:
            return
        self._followers.pop(slot, None)
        self._versions.pop(slot, None)
        if self._listening.pop(slot, None) is not None:
            task = asyncio.create_task(self._ignore(slot))
            self._ignoring.add(task)
            task.add_done_callback(self._ignoring.discard)

    async def _ignore(self, slot: Slot) -> None:
        if slot not in self._listening:
            await self._feed.ignore(slot)
