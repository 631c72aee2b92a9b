"""One stream that is followed live: its topic.

A topic hears of each entry once, formats it once, and hands the same bytes to every follower
that stands where the entry begins. Whoever does not (a follower that has just come, a message
that was lost) reads the log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from celery_streams.contracts import Entry, Head, Page
from celery_streams.errors import StreamNotFound
from celery_streams.gateway import wire
from celery_streams.gateway.followers import Follower, Write
from celery_streams.gateway.run_states import progress, run_state
from celery_streams.protocol import Deleted, Ended, LiveEvent, ProtocolStore, RunStateChanged
from celery_streams.slots import Slot
from celery_streams.stores.commands import CLOSED

#: Bytes of formatted events a topic remembers.
_RECENT_BYTES = 64 * 1024


@dataclass(slots=True)
class Counts:
    """What the hub has done so far: entries formatted, deliveries, their bytes, cut off."""

    events: int = 0
    delivered: int = 0
    bytes: int = 0
    cut: int = 0


class Owner(Protocol):
    """What a topic needs of its hub."""

    store: ProtocolStore
    buffer: int
    counts: Counts

    def abandon(self, topic: Topic) -> None:
        """Nobody follows the topic any more."""
        ...


class Topic:
    """One stream that somebody follows."""

    def __init__(self, hub: Owner, slot: Slot) -> None:
        self.hub = hub
        self.slot = slot
        self.followers: set[Follower] = set()
        self.head: Head | None = None
        self.heard_at = time.monotonic()
        self.listening: asyncio.Task[None] | None = None
        #: Changes whenever whoever is reading the log should read it again.
        self.version = 0
        self._cursor: str | None = None
        self._touched_at = self.heard_at
        #: When the head was looked at last.
        self.looked_at = self.heard_at
        #: How the run is doing while its stream does not exist.
        self._awaited: str | None = None
        # Before this nothing of the run's states is believed: attempt, and order in that.
        self._reached = (0, 0)
        self._pages: dict[tuple[int, int], asyncio.Task[Page]] = {}
        # The last entries heard, formatted, for those who were reading the log meanwhile.
        self._recent: deque[tuple[int, int, bytes]] = deque()
        self._recent_bytes = 0
        self._tail = 0

    def follow(self, offset: int, deadline: float, write: Write | None = None) -> Follower:
        """A follower that stands at ``offset``; ends at ``deadline`` (monotonic seconds).

        ``write`` sends an event to a client at once, if the server offers that and the client
        takes it: waking its task for each costs as much as sending.
        """
        follower = Follower(self, offset, deadline, write)
        self.followers.add(follower)
        return follower

    def remove(self, follower: Follower) -> None:
        """Forget a follower, and the topic with its last one."""
        self.followers.discard(follower)
        if not self.followers:
            self.hub.abandon(self)

    async def read(self, offset: int) -> Page:
        """The log from ``offset`` on. Followers that ask at the same time share one answer."""
        same = (offset, self.version)
        reading = self._pages.get(same)
        if reading is None:
            reading = asyncio.create_task(self.hub.store.read(self.slot, offset))
            self._pages[same] = reading
            reading.add_done_callback(lambda _: self._pages.pop(same, None))
        return self._seen(await asyncio.shield(reading))

    async def look(self) -> Page:
        """The stream's head now, as a page without entries."""
        return self._seen(await look(self.hub.store, self.slot))

    async def keep_alive(self, now: float) -> None:
        """Renew the life of a stream that lives as long as somebody reads it."""
        ttl = self.head.ttl if self.head else None
        if ttl is not None and self.followers and now - self._touched_at >= min(ttl / 4, 30.0):
            self._touched_at = now
            await self.hub.store.touch(self.slot, ttl)

    def next_cursor(self, theirs: str | None = None) -> str:
        """A cursor good for all followers: past every cursor that any of them came with."""
        newest = wire.cursor(theirs)
        if self._cursor in (None, theirs) or int(newest) > int(self._cursor):
            self._cursor = newest
        return self._cursor

    def deliver(self, event: LiveEvent) -> None:
        """Hand a live event to everybody who stands where it begins."""
        self.heard_at = time.monotonic()
        match event:
            case Entry():
                self._deliver_entry(event)
            case Ended(end, state):
                self._deliver_end(end, state)
            case RunStateChanged(epoch, state):
                self._deliver_run_state(epoch, state)
            case Deleted():
                self._start_over()
            case None:
                self._forget()  # the log decides: a failover may have lost what was heard
                self._unsettle(self.followers)

    def settle(self, follower: Follower, version: int) -> None:
        """A follower has been sent what the log held; ``version`` is the topic's before that.

        It goes live if it is level with the topic, if need be by what was heard meanwhile.
        """
        if version != self.version:
            return
        for start, end, frame in self._recent:
            if start == follower.offset:
                follower.push(frame, end)
        follower.stale = follower.offset < self._tail

    def announce(self, head: Head) -> None:
        """What a look at the stream's head has shown: whoever is behind it reads the log."""
        self._unsettle(
            [each for each in self.followers if each.offset < head.end or head.closed is not None]
        )
        self._observe(head)

    def announce_missing(self, state: str | None) -> None:
        """What a look for a stream that is awaited has shown: how its run is doing."""
        if self.head is not None:
            self.deliver(None)  # reading will say what became of it
        elif state != self._awaited:
            self._unsettle(self.followers)

    def control(self, end: int, *, closed: bool = False) -> bytes:
        """The control event of somebody who has everything up to ``end``, the tail."""
        return wire.control_event(
            end,
            cursor=None if closed else self.next_cursor(),
            up_to_date=True,
            closed=closed,
            run_state=self.run_state,
        )

    @property
    def run_state(self) -> str | None:
        """How the stream's run is doing, if the stream has one."""
        return run_state(self.slot, self.head, self._awaited)

    @property
    def doubtful(self) -> bool:
        """Whether what is heard of the stream does not fit what is known of its run.

        Anybody may write to a run's stream. But it may also be that a message of the run's was
        lost, or that its worker has a version of this package that sends none.
        """
        return self.slot.scope == "run" and self.run_state != "STARTED"

    def _deliver_entry(self, entry: Entry) -> None:
        head = self.head
        if head is None:
            self._unsettle(self.followers)
            return
        start, end = entry.end - entry.count, entry.end
        frame = wire.data_event((entry.payload,), head.content_type, end) + self.control(end)
        self._tail = end
        self._remember(start, end, frame)
        self.hub.counts.events += 1
        behind, delivered = [], 0
        for follower in self.followers:
            if follower.stale or follower.offset >= end:
                continue
            if follower.offset == start:
                follower.push(frame, end)
                delivered += 1
            else:
                behind.append(follower)
        self.hub.counts.delivered += delivered
        self.hub.counts.bytes += delivered * len(frame)
        if behind:
            self._unsettle(behind)

    def _deliver_end(self, end: int, state: str) -> None:
        self.version += 1
        if self.head is None:
            self._unsettle(self.followers)
            return
        # A stream that is closed early leaves its run as it is.
        over = self.head.run_state if state == CLOSED else state
        self.head = replace(self.head, end=end, closed=state, run_state=over)
        frame = self.control(end, closed=True)
        for follower in self.followers:
            if follower.stale or follower.offset != end:
                self._unsettle((follower,))
            else:
                follower.finished = True
                follower.push(frame, end)

    def _deliver_run_state(self, epoch: int, state: str) -> None:
        head = self.head
        if head is None:
            self._unsettle(self.followers)  # they await the stream, and look what there is
            return
        self._observe(replace(head, epoch=epoch, run_state=state))

    def _tell_run_state(self) -> None:
        """Tell those who are live; the others get the state with what they read."""
        self.version += 1  # whoever is being sent a page has a state on it that is old now
        state = self.run_state
        for follower in self.followers:
            if not (follower.stale or follower.finished) and follower.told != state:
                follower.told = state
                follower.push(self.control(follower.offset), follower.offset)

    def _unsettle(self, followers: Iterable[Follower]) -> None:
        """Send followers to the log."""
        self.version += 1
        for follower in followers:
            follower.stale = True
            follower.wake()

    def _seen(self, page: Page) -> Page:
        """What a page shows, and the page with what is known besides."""
        self._observe(page.head)
        if page.head is None:
            self._awaited = page.run_state
            return page
        return replace(page, head=self.head)

    def _observe(self, head: Head | None) -> None:
        known = self.head
        if known is not None and (head is None or known.identity != head.identity):
            self.head = head
            self._start_over()  # it is gone, or another stream has its name now
            return
        if head is not None:
            reached = progress(head)
            if known is not None and reached < self._reached:
                # Asked before, and answered after a message told of what came next.
                head = replace(head, epoch=known.epoch, run_state=known.run_state)
            else:
                self._reached = reached
        self.head = head
        if known is not None and head is not None and known.run_state != head.run_state:
            self._tell_run_state()

    def _start_over(self) -> None:
        """The stream is gone: so is what was heard of it, and nobody follows it any longer."""
        self._forget()
        for follower in self.followers:
            follower.finished = True
        self._unsettle(self.followers)

    def _forget(self) -> None:
        self._recent.clear()
        self._recent_bytes = self._tail = 0
        self._reached = (0, 0)

    def _remember(self, start: int, end: int, frame: bytes) -> None:
        if self._recent and self._recent[-1][1] != start:
            self._recent.clear()
            self._recent_bytes = 0
        self._recent.append((start, end, frame))
        self._recent_bytes += len(frame)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[2])


async def look(store: ProtocolStore, slot: Slot) -> Page:
    """A stream's head now, as a page without entries; without a head if there is no stream."""
    head = (await store.heads([slot]))[0]
    if isinstance(head, StreamNotFound):
        return Page((), None, head.run_state)
    if isinstance(head, Exception):
        raise head
    return Page((), head)
