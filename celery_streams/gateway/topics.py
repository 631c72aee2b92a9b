"""One stream that is followed live: its topic, and the followers of that.

A topic hears of each entry once, formats it once, and hands the same bytes to every follower
that stands where the entry begins. Whoever does not (a follower that has just come, a message
that was lost) reads the log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from celery_streams.contracts import Entry, Head, Page
from celery_streams.errors import StreamNotFound
from celery_streams.gateway import wire
from celery_streams.protocol import Deleted, Ended, LiveEvent, ProtocolStore
from celery_streams.slots import Slot

Write = Callable[[bytes], bool]

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


class Follower:
    """One reader that follows a topic, and what it has not been sent yet.

    ``offset`` is where it will stand once it has been sent everything in its buffer. While
    ``stale`` is set it gets nothing from the topic: it reads the log from there.
    """

    __slots__ = (
        "_frames",
        "_topic",
        "_waiter",
        "_write",
        "cut",
        "deadline",
        "finished",
        "gone",
        "offset",
        "sending",
        "sent_at",
        "size",
        "stale",
        "task",
        "version",
    )

    def __init__(
        self, topic: Topic, offset: int, deadline: float, write: Write | None = None
    ) -> None:
        self._topic = topic
        self._write = write
        self._frames: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.offset = offset
        #: The topic's version before its first page was read.
        self.version = topic.version
        self.deadline = deadline
        self.sent_at = time.monotonic()
        self.size = 0
        self.stale = True
        #: Nothing comes after what is in the buffer.
        self.finished = False
        #: Bytes are on their way to the client, who may not be reading.
        self.sending = False
        #: The client has gone away.
        self.gone = False
        #: It did not keep up.
        self.cut = False
        #: The task that sends, to be cancelled if it cannot.
        self.task = asyncio.current_task()

    def push(self, frame: bytes, end: int) -> None:
        """Send an event after which the follower stands at ``end``, now or when it can be."""
        waiter = self._waiter
        if (
            self._write is not None
            and waiter is not None
            and not (self._frames or waiter.done() or self.finished)
            and self._write(frame)
        ):
            self.offset = end
            self.sent_at = self._topic.heard_at
            return
        self._frames.append(frame)
        self.size += len(frame)
        self.offset = end
        if self.size > self._topic.hub.buffer:
            self.cut_off()
        self.wake()

    def cut_off(self) -> None:
        """End a follower whose client does not take what is being sent to it."""
        if self.sending and not self.cut:
            self.cut = True
            self._topic.hub.counts.cut += 1
            if self.task is not None:
                self.task.cancel()

    @property
    def pending(self) -> bool:
        """Whether there is something to send."""
        return bool(self._frames)

    def take(self) -> bytes:
        """Everything in the buffer, which is empty then."""
        frames = self._frames
        if len(frames) == 1:
            data = frames.popleft()
        else:
            data = b"".join(frames)
            frames.clear()
        self.size = 0
        return data

    def wake(self) -> None:
        """Let the follower look at its state."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Return when there is something to send, to read, or to end for."""
        if self._frames or self.stale or self.finished or self.gone:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def leave(self) -> None:
        """Follow no longer."""
        self._topic.remove(self)


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
        page = await asyncio.shield(reading)
        self._observe(page.head)
        return page

    async def look(self) -> Head | None:
        """The stream's head now; ``None``: there is no such stream."""
        head = (await self.hub.store.heads([self.slot]))[0]
        if isinstance(head, StreamNotFound):
            return None
        if isinstance(head, Exception):
            raise head
        self._observe(head)
        return head

    async def keep_alive(self, now: float) -> None:
        """Renew the life of a stream that lives as long as somebody reads it."""
        ttl = self.head.ttl if self.head else None
        if ttl is not None and self.followers and now - self._touched_at >= min(ttl / 4, 30.0):
            self._touched_at = now
            await self.hub.store.touch(self.slot, ttl)

    def next_cursor(self, theirs: str | None = None) -> str:
        """A cursor good for all followers: past every cursor that any of them came with."""
        newest = wire.cursor(theirs)
        if self._cursor is None or int(newest) > int(self._cursor):
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
        known = self.head
        self._observe(head)
        for follower in self.followers:
            if follower.offset < head.end or head.closed is not None:
                self._unsettle((follower,))
            elif (
                known is not None
                and head.run_state != known.run_state
                and not (follower.stale or follower.finished)
            ):
                follower.push(self.control(follower.offset), follower.offset)

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
        return run_state(self.slot, self.head)

    def _deliver_entry(self, entry: Entry) -> None:
        head = self.head
        if head is None:
            self._unsettle(self.followers)
            return
        if head.run_state is not None and head.run_state != "STARTED":
            head = self.head = replace(head, run_state="STARTED")
        start, end = entry.end - entry.count, entry.end
        frame = wire.data_event((entry.payload,), head.content_type) + self.control(end)
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
        self.head = replace(self.head, end=end, closed=state, run_state=state)
        frame = self.control(end, closed=True)
        for follower in self.followers:
            if follower.stale or follower.offset != end:
                self._unsettle((follower,))
            else:
                follower.finished = True
                follower.push(frame, end)

    def _unsettle(self, followers: Iterable[Follower]) -> None:
        """Send followers to the log."""
        self.version += 1
        for follower in followers:
            follower.stale = True
            follower.wake()

    def _observe(self, head: Head | None) -> None:
        known, self.head = self.head, head
        if known is not None and (head is None or known.identity != head.identity):
            self._start_over()  # it is gone, or another stream has its name now

    def _start_over(self) -> None:
        """The stream is gone: so is what was heard of it, and nobody follows it any longer."""
        self._forget()
        for follower in self.followers:
            follower.finished = True
        self._unsettle(self.followers)

    def _forget(self) -> None:
        self._recent.clear()
        self._recent_bytes = self._tail = 0

    def _remember(self, start: int, end: int, frame: bytes) -> None:
        if self._recent and self._recent[-1][1] != start:
            self._recent.clear()
            self._recent_bytes = 0
        self._recent.append((start, end, frame))
        self._recent_bytes += len(frame)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[2])


def run_state(slot: Slot, head: Head | None) -> str | None:
    """How the run of a stream is doing; ``None`` for streams without a run."""
    if slot.scope != "run":
        return None
    return "PENDING" if head is None else _as_run_state(head.run_state or "PENDING")


def _as_run_state(state: str) -> str:
    """A run's state as clients know it: a stream that is closed early leaves the run alive."""
    return {"LOST": "STALLED", "CLOSED": "STARTED"}.get(state, state)
