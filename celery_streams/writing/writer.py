"""What users hold: :class:`Writer`, one writer's view of a channel."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from celery_streams.chunks import encoder_for, too_large
from celery_streams.credentials.cache import CredentialCache
from celery_streams.errors import ChunkTooLarge, StreamError
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.writing.channel import Channel, WriteResult

T = TypeVar("T")

#: What ``append()`` returns for a chunk that is not in the stream: no chunk has this number.
NOWHERE = -1
#: Seconds between two looks whether another greenlet's event loop has ended.
_LOOK = 0.02


class Writer:
    """Writes chunks to one stream, in order. Thread-safe.

    As a context manager it waits at the end, so that leaving the block without an error means
    that every chunk is durable.

    All writers that one attempt opens on one stream share a buffer: what the task wrote first
    is first in the stream, through whichever writer.
    """

    def __init__(self, channel: Channel, cache: CredentialCache, settings: StreamsSettings) -> None:
        self.slot: Slot = channel.slot
        self._channel = channel
        self._cache = cache
        self._limit = settings.max_chunk_bytes
        self._timeout = settings.drain_timeout
        self._encode = encoder_for(channel.content_type)
        self._count = 0

    def write(self, chunk: Any) -> None:
        """Queue one chunk: a plain value, dataclass or pydantic model. Never a round trip.

        Blocks only while the buffer (``buffer_bytes``) is full, at most ``write_timeout``
        seconds.

        Raises:
            InvalidChunk: it cannot be serialized; nothing was written.
            ChunkTooLarge: over ``max_chunk_bytes``; nothing was written.
            WriteTimeout: the buffer stayed full; the chunk was not accepted.
            StreamError: whatever has ended this writer (fenced, closed, store gone).
        """
        data = self._encode(chunk)
        if len(data) > self._limit:
            raise too_large(data, self._limit, self.slot)
        try:
            self._channel.put(data)
        except StreamError as error:
            self._failed(error)
        else:
            self._count += 1

    def append(self, chunk: Any, *, timeout: float | None = None) -> int:
        """Write one chunk and wait until it is durable; returns its sequence number.

        Raises what :meth:`write` and :meth:`flush` raise.
        """
        data = self._encode(chunk)
        if len(data) > self._limit:
            raise too_large(data, self._limit, self.slot)
        try:
            place = self._channel.put(data, awaited=True)
            self._count += 1
            try:
                self._channel.flush(self._seconds(timeout), upto=place + 1)
            finally:
                offset = self._channel.offset_of(place)
        except StreamError as error:
            self._failed(error)
            return NOWHERE
        return offset

    def merge(self, source: Iterable[Any] | AsyncIterable[Any]) -> int:
        """Write every item of ``source``; returns how many.

        An async source is consumed here and now on an event loop of its own; inside a running
        event loop use :meth:`amerge`. Greenlets (gevent, eventlet) do that one after the other,
        and wait for their turn at most ``drain_timeout``. An item that is refused ends the merge
        with its error; an oversized one also evicts the slot's credentials, as every failure of
        a writer does.
        """
        if isinstance(source, AsyncIterable):
            return _run(self.amerge(source), self._timeout)
        before = self._count
        for _ in self.pipe(source):
            pass
        return self._count - before

    async def amerge(self, source: AsyncIterable[Any]) -> int:
        """:meth:`merge` for use inside an event loop."""
        before = self._count
        async for _ in self.apipe(source):
            pass
        return self._count - before

    def pipe(self, source: Iterable[T]) -> Iterator[T]:
        """Yield the items of ``source`` on, writing each as it passes."""
        for item in source:
            self._write_or_evict(item)
            yield item

    async def apipe(self, source: AsyncIterable[T]) -> AsyncIterator[T]:
        """:meth:`pipe` for an async source."""
        async for item in source:
            self._write_or_evict(item)
            yield item

    def flush(self, *, timeout: float | None = None) -> int:
        """Wait until all this writer wrote is durable; returns the stream's end as known then.

        Waits for what others have written through the same buffer until now, too. ``timeout``
        is in seconds (default ``drain_timeout``).

        Raises:
            WriteTimeout: not durable in time (it may become so later).
            StreamError: whatever has ended this writer; ``unsent`` says how many are lost.
        """
        try:
            return self._channel.flush(self._seconds(timeout))
        except StreamError as error:
            self._failed(error)
            return 0

    def wait(self, *, timeout: float | None = None) -> WriteResult:
        """:meth:`flush`, and say what was written."""
        offset = self.flush(timeout=timeout)
        return WriteResult(offset, self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()

    def _write_or_evict(self, item: Any) -> None:
        try:
            self.write(item)
        except ChunkTooLarge:
            if credentials := self._cache.peek(self.slot):
                self._cache.evict(credentials)
            raise

    def _failed(self, error: StreamError) -> None:
        """A chunk was not accepted, or is not durable."""
        raise error

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


def _run(consuming: Any, patience: float) -> int:
    """Run a coroutine to its end from sync code.

    asyncio runs one event loop a thread, and to it all greenlets of gevent or eventlet are one
    thread. So a greenlet waits, ``patience`` seconds at most, while another one's loop runs.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return int(asyncio.run(consuming))
        here = threading.get_ident()
        if getattr(loop, "_thread_id", here) == here:
            consuming.close()
            raise StreamError(
                "merge() of an async source inside a running event loop would block it "
                f"(thread {threading.current_thread().name}); use `await writer.amerge(source)`"
            )
        if time.monotonic() > deadline:
            consuming.close()
            raise StreamError(
                "merge() of an async source needs an event loop, and another greenlet's has been "
                f"running for {patience:g} s: of all greenlets of a process one at a time can use "
                "asyncio. Run such tasks in the prefork or the threads pool, or merge a source "
                "that is not async"
            )
        time.sleep(_LOOK)  # other greenlets go on
