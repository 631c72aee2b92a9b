"""One writer's way into one stream: a bounded buffer, and the batches in flight.

Task threads put chunks in; the process's :class:`~celery_streams.writing.flusher.Flusher`
takes batches out. Nothing is in flight: the next chunk leaves at once. As much is in flight as
the store takes at once (one batch, on Redis): chunks gather and leave together when the first is
acknowledged. So an idle stream has the latency of one round trip, and a hot one batches itself,
without a timer.

A store whose round trips are long takes several batches. Then the next one leaves without
waiting for the one before it: as soon as it is full, or :data:`PACE` has passed.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from celery_streams.chunks import frame
from celery_streams.contracts import Appended, Batch, Credentials, Producer
from celery_streams.errors import StreamError, WriteTimeout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

#: Chunks one channel holds at most, however small: each costs memory beyond its bytes.
MOST_PENDING = 200_000
#: Seconds from one batch to the next while something is in flight, unless it is full. Each batch
#: costs the process some time, and a hot loop would otherwise send one for every few chunks.
PACE = 0.005


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a writer has written: ``count`` chunks, all durable.

    ``offset`` is the sequence number after its last chunk: where a reader that has read them
    all stands.
    """

    offset: int
    count: int


class _Flight(NamedTuple):
    """A batch in flight, and the bytes of its chunks."""

    batch: Batch
    size: int


class Channel:
    """The buffer of one producer on one slot. Thread-safe.

    Args:
        slot: the stream.
        producer: identifies this writer to the store; owned by this channel alone.
        content_type: of the stream.
        settings: buffer and batch limits, ``write_timeout``.
        schedule: called (outside the lock) when the channel has something to send and the
            flusher does not know yet.
        depth: batches that may be in flight at once.
    """

    def __init__(
        self,
        slot: Slot,
        producer: Producer,
        content_type: str,
        settings: StreamsSettings,
        schedule: Callable[[Channel], None],
        depth: int = 1,
    ) -> None:
        self.slot = slot
        self.producer = producer
        self.content_type = content_type
        self.failures = 0  #: consecutive; the flusher's
        self.failing_since = 0.0  #: monotonic seconds; the flusher's
        self.queued = False  #: whether the flusher has it in one of its places; the flusher's
        self.unanswered = 0  #: batches whose sending the store has not answered; the flusher's
        #: Obtained for the next batch, whatever the cache keeps of them; the flusher's.
        self.granted: Credentials | None = None
        #: What the first batch in flight was refused with, until nothing is unanswered; the
        #: flusher's.
        self.refused: tuple[Exception, Credentials] | None = None
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
        self._depth = depth
        # Only the flusher's thread, which nothing interrupts, changes these, all with the lock.
        self._flying: deque[_Flight] = deque()
        self._flying_bytes = 0
        self._sent = 0  # of those in flight; the others have to be sent again
        self._not_before = 0.0  # the earliest time of a batch that is not full
        self._seq = 0
        self._taken = 0  # chunks that have left the buffer: durable or in flight
        self._durable = 0
        self._end = 0
        self._scheduled = False
        self._lost = 0  # accepted, and given up when this writer ended
        self._reported = 0  # of the lost ones: those whose append() raised
        self._error: StreamError | None = None
        self._refusal: StreamError | None = None  # why nothing more is accepted
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
                if self._refusal is not None:
                    raise self._refused()
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
                limit = f"{self._limit} bytes, or {MOST_PENDING} chunks"
                raise self._timed_out(
                    f"no room in the write buffer ({limit}) for {self._write_timeout:g} s; the "
                    "store is too slow or unreachable"
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
    def durable(self) -> int:
        """Chunks that are durable."""
        return self._durable

    @property
    def unsent(self) -> int:
        """Chunks accepted and not known to be durable."""
        with self._lock:
            return self._accepted() - self._durable

    # The flusher's side.

    def take(self) -> Batch | float | None:
        """The batch to send next: one in flight that failed, else a new one.

        A number: none before that time (monotonic seconds). ``None``: nothing to do until
        something is acknowledged or put.
        """
        with self._lock:
            if self._error is not None:
                return None
            flying = self._flying
            if self._sent < len(flying):
                batch = flying[self._sent].batch
            elif len(flying) >= self._depth:
                return None
            elif not self._pending:
                self._scheduled = False
                return None
            elif flying and not self._full() and time.monotonic() < self._not_before:
                return self._not_before
            else:
                batch = self._next_batch()
            self._sent += 1
            self._scheduled = self._more or len(flying) >= self._depth
            return batch

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has something, now or soon."""
        with self._lock:
            return self._error is None and self._more

    def acknowledged(self, appended: Appended) -> tuple[int, int, bool]:
        """The first batch in flight is durable; returns its chunks, bytes, and whether there is
        something to send."""
        with self._lock:
            if not self._flying:
                return 0, 0, False
            batch, size = self._flying.popleft()
            self._sent = max(0, self._sent - 1)
            for place in self._awaited:
                if self._durable <= place < self._durable + batch.count:
                    self._awaited[place] = appended.offset + place - self._durable
            self._durable += batch.count
            self._flying_bytes -= size
            self._bytes = self._bytes - size if self._pending else self._flying_bytes
            self._end = appended.end
            self._scheduled = self._more
            self._wake_waiters()
            return batch.count, size, self._scheduled

    def send_again(self) -> None:
        """All that is in flight has to be sent again, from the first on."""
        with self._lock:
            self._sent = 0

    def fail(self, error: StreamError) -> None:
        """End this writer: whoever waits, and whoever writes from now on, gets ``error``."""
        with self._lock:
            self._lost = self._accepted() - self._durable
            # Whoever waits for a chunk of its own is told of it by the error it gets.
            self._reported = sum(place >= self._durable for place in self._awaited)
            self._error = self._refusal = error
            self._pending.clear()
            self._forget_flying()
            self._bytes = 0
            self._wake_waiters()

    def seal(self, refusal: StreamError) -> None:
        """Accept nothing more; what was accepted is still sent."""
        with self._lock:
            self._refusal = self._refusal or refusal

    def after_fork(self) -> None:
        """In a forked child: this channel, its buffer and its flusher are the parent's."""
        self._lock = threading.Lock()
        self._waiters = []
        self._pending, self._bytes = [], 0
        self._forget_flying()
        self._lost = 0
        self._error = self._refusal = StreamError(
            f"this writer on {self.slot} was opened before the process was forked, so it is the "
            "parent's; open a new one in the child"
        )

    def _accepted(self) -> int:
        return self._taken + len(self._pending) + self._lost

    @property
    def _more(self) -> bool:
        flying = len(self._flying)
        return self._sent < flying or bool(self._pending and flying < self._depth)

    def _full(self) -> bool:
        """Whether what is pending makes a full batch, as far as is known."""
        return (
            len(self._pending) >= self._batch_chunks
            or self._bytes - self._flying_bytes >= self._batch_bytes
        )

    def _next_batch(self) -> Batch:
        chunks, size = self._cut()
        batch = Batch(self._seq, frame(chunks, self.content_type), len(chunks), self.content_type)
        self._flying.append(_Flight(batch, size))
        self._flying_bytes += size
        self._seq += 1
        self._taken += batch.count
        if self._depth > 1:
            self._not_before = time.monotonic() + PACE
        return batch

    def _cut(self) -> tuple[list[bytes], int]:
        """The next batch's chunks, and their bytes."""
        pending = self._pending
        if len(pending) <= self._batch_chunks:
            size = sum(map(len, pending))
            if size <= self._batch_bytes or len(pending) == 1:
                self._pending = []
                return pending, size
        count = size = 0
        for data in pending[: self._batch_chunks]:
            if count and size + len(data) > self._batch_bytes:
                break
            size += len(data)
            count += 1
        self._pending = pending[count:]
        return pending[:count], size

    def _forget_flying(self) -> None:
        self._flying.clear()
        self._flying_bytes = self._sent = 0
        self._taken = self._durable

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

    def _refused(self) -> StreamError:
        assert self._refusal is not None
        return copy.copy(self._refusal) if self._error is None else self._ended()

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
