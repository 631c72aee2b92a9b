"""One reader of a stream that is followed live, and what it has not been sent yet."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_streams.gateway.topics import Topic

Write = Callable[[bytes], bool]


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
        "told",
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
        #: The run's state as it was told last.
        self.told: str | None = None
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
