"""One writer's way into one stream: a bounded buffer, and at most one batch in flight.

Task threads put chunks in; the process's :class:`~celery_streams.writing.flusher.Flusher`
takes batches out. Nothing is in flight: the next chunk leaves at once. Something is: chunks
gather and leave together when it is acknowledged. So an idle stream has the latency of one
round trip, and a hot one batches itself, without a timer.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from celery_streams.chunks import frame
from celery_streams.contracts import Appended, Batch, Producer
from celery_streams.errors import StreamError, WriteTimeout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

#: Chunks one channel holds at most, however small: each costs memory beyond its bytes.
MOST_PENDING = 200_000


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a writer has written: ``count`` chunks, all durable.

    ``offset`` is the sequence number after its last chunk: where a reader that has read them
    all stands.
    """

    offset: int
    count: int


class Channel:
    """The buffer of one producer on one slot. Thread-safe.

    Args:
        slot: the stream.
        producer: identifies this writer to the store; owned by this channel alone.
        content_type: of the stream.
        settings: buffer and batch limits, ``write_timeout``.
        schedule: called (outside the lock) when the channel has something to send and the
            flusher does not know yet.
    """

    def __init__(
        self,
        slot: Slot,
        producer: Producer,
        content_type: str,
        settings: StreamsSettings,
        schedule: Callable[[Channel], None],
    ) -> None:
        self.slot = slot
        self.producer = producer
        self.content_type = content_type
        self.failures = 0  #: consecutive; the flusher's
        self.failing_since = 0.0  #: monotonic seconds; the flusher's
        self._limit = settings.buffer_bytes
        self._batch_bytes = settings.batch_bytes
        self._batch_chunks = settings.batch_chunks
        self._write_timeout = settings.write_timeout
        self._schedule = schedule
        # A soft time limit raises between any two steps of the task's thread. The `with` of a
        # plain lock is proof against that; a Condition, which is Python code, may never let go.
        self._lock = threading.Lock()
        self._waiters: list[threading.Lock] = []
        self._pending: list[bytes] = []
        self._bytes = 0  # of chunks that are not durable: pending and in flight
        self._flying: Batch | None = None
        self._flying_bytes = 0
        self._seq = 0
        self._durable = 0
        self._end = 0
        self._scheduled = False
        self._lost = 0  # accepted, and given up when this writer ended
        self._reported = 0  # of the lost ones: those whose append() raised
        self._error: StreamError | None = None
        self._awaited: dict[int, int] = {}  # chunk's place in this channel -> its offset, or -1

    def put(self, data: bytes, *, awaited: bool = False) -> int:
        """Accept one serialized chunk; returns its place in this channel.

        Blocks while the buffer is full. ``awaited`` keeps its offset for :meth:`offset_of`.

        Raises:
            WriteTimeout: no room for ``write_timeout`` seconds; the chunk was not accepted.
            StreamError: whatever has ended this writer.
        """
        deadline = 0.0
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._ended()
                full = self._bytes and (
                    self._bytes + len(data) > self._limit or len(self._pending) >= MOST_PENDING
                )
                if full:
                    waiter = self._new_waiter()
                else:
                    # An interruption may come between any two lines here, so whatever can be
                    # is derived, and flush() and a full buffer schedule again.
                    place = self._accepted()
                    self._pending.append(data)
                    self._bytes += len(data)
                    if awaited:
                        self._awaited[place] = -1
                    if self._scheduled:
                        return place
                    self._scheduled = True
            self._schedule(self)
            if not full:
                return place
            deadline = deadline or time.monotonic() + self._write_timeout
            if not self._wait(waiter, deadline):
                raise self._timed_out(
                    f"no room in the write buffer ({self._limit} bytes) for "
                    f"{self._write_timeout:g} s; the store is too slow or unreachable"
                )

    def flush(self, timeout: float, *, upto: int | None = None) -> int:
        """Wait until the first ``upto`` chunks (default: all accepted so far) are durable.

        Returns the stream's end as of the last acknowledgement.

        Raises:
            WriteTimeout: not within ``timeout`` seconds.
            StreamError: whatever has ended this writer before.
        """
        deadline = time.monotonic() + timeout
        if self._pending:
            self._schedule(self)
        goal = upto
        while True:
            with self._lock:
                if goal is None:
                    goal = self._accepted()
                if self._durable >= goal:
                    return self._end
                if self._error is not None:
                    raise self._ended()
                waiter = self._new_waiter()
            if not self._wait(waiter, deadline):
                raise self._timed_out(f"not acknowledged within {timeout:g} s")

    def offset_of(self, place: int) -> int:
        """The sequence number of the durable chunk that was put with ``awaited``; once."""
        with self._lock:
            return self._awaited.pop(place)

    @property
    def error(self) -> StreamError | None:
        """What has ended this writer, if anything has, with what was lost."""
        with self._lock:
            return None if self._error is None else self._ended()

    @property
    def unreported(self) -> StreamError | None:
        """What has ended this writer, if chunks were lost that nobody has been told of."""
        with self._lock:
            if self._error is None or self._accepted() - self._durable <= self._reported:
                return None
            return self._ended()

    @property
    def unsent(self) -> int:
        """Chunks accepted and not known to be durable."""
        with self._lock:
            return self._accepted() - self._durable

    # The flusher's side.

    def take(self) -> Batch | None:
        """The batch to send: the one in flight again, else a new one; ``None``: nothing to do."""
        with self._lock:
            if self._error is not None:
                return None
            if self._flying is not None:
                return self._flying
            if not self._pending:
                self._scheduled = False
                return None
            chunks = self._cut()
            self._flying_bytes = sum(map(len, chunks))
            self._flying = Batch(
                self._seq, frame(chunks, self.content_type), len(chunks), self.content_type
            )
            return self._flying

    def acknowledged(self, appended: Appended) -> tuple[int, int, bool]:
        """The batch in flight is durable; returns its chunks, bytes, and whether more waits."""
        with self._lock:
            batch, size = self._flying, self._flying_bytes
            if batch is None:
                return 0, 0, False
            for place in self._awaited:
                if self._durable <= place < self._durable + batch.count:
                    self._awaited[place] = appended.offset + place - self._durable
            self._flying = None
            self._seq += 1
            self._durable += batch.count
            self._bytes = self._bytes - size if self._pending else 0
            self._end = appended.end
            self._scheduled = bool(self._pending)
            self._wake_waiters()
            return batch.count, size, self._scheduled

    def fail(self, error: StreamError) -> None:
        """End this writer: whoever waits, and whoever writes from now on, gets ``error``."""
        with self._lock:
            self._lost = self._accepted() - self._durable
            # Whoever waits for a chunk of its own is told of it by the error it gets.
            self._reported = sum(place >= self._durable for place in self._awaited)
            self._error = error
            self._pending.clear()
            self._flying = None
            self._bytes = 0
            self._wake_waiters()

    def after_fork(self) -> None:
        """In a forked child: this channel, its buffer and its flusher are the parent's."""
        self._lock = threading.Lock()
        self._waiters = []
        self._pending, self._flying, self._bytes = [], None, 0
        self._lost = 0
        self._error = StreamError(
            f"this writer on {self.slot} was opened before the process was forked, so it is the "
            "parent's; open a new one in the child"
        )

    def _accepted(self) -> int:
        flying = 0 if self._flying is None else self._flying.count
        return self._durable + flying + len(self._pending) + self._lost

    def _cut(self) -> list[bytes]:
        pending = self._pending
        if self._bytes <= self._batch_bytes and len(pending) <= self._batch_chunks:
            self._pending = []
            return pending
        count = size = 0
        for data in pending[: self._batch_chunks]:
            size += len(data)
            if count and size > self._batch_bytes:
                break
            count += 1
        self._pending = pending[count:]
        return pending[:count]

    def _new_waiter(self) -> threading.Lock:
        """A locked lock that the next change releases. Called with the lock held."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        return waiter

    def _wait(self, waiter: threading.Lock, deadline: float) -> bool:
        """Wait for the next change; ``False`` if the deadline came first."""
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if waiter.acquire(timeout=left):
            return True
        with self._lock, suppress(ValueError):
            self._waiters.remove(waiter)
        return False

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            waiter.release()
        self._waiters.clear()

    def _timed_out(self, what: str) -> WriteTimeout:
        unsent = self._accepted() - self._durable
        error = WriteTimeout(f"{what}: {unsent} chunks of {self.slot} are not durable")
        error.unsent = unsent
        return error

    def _ended(self) -> StreamError:
        """A fresh copy of what ended this writer (each raise grows its own traceback)."""
        assert self._error is not None
        error = copy.copy(self._error)
        error.unsent = self._accepted() - self._durable
        if error.unsent:
            first = self._durable
            lost = (
                f"{error.unsent} chunks of {self.slot} are not durable: this writer's chunks "
                f"{first} to {self._accepted() - 1}, counted from 0"
            )
            error.args = (f"{error.args[0]} ({lost})",)
        error.__cause__ = self._error.__cause__
        return error
