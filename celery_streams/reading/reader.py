"""Readers: :class:`Reader` for threads and processes, :class:`AsyncReader` for event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from celery_streams.chunks import decode as decode_chunk
from celery_streams.contracts import AsyncStore, Head, Offset, Page, Store
from celery_streams.errors import OffsetGone, StoreUnavailable, StreamNotFound
from celery_streams.reading.position import Decode, Position
from celery_streams.slots import Slot

T = TypeVar("T")

OnIdle = Callable[[], str | None]
AsyncOnIdle = Callable[[], Awaitable[str | None]]


class _Reading:
    """What both readers show."""

    _position: Position

    @property
    def slot(self) -> Slot:
        """The stream."""
        return self._position.slot

    @property
    def offset(self) -> int:
        """The sequence number of the next chunk: where to resume."""
        return self._position.offset

    @property
    def closed(self) -> str | None:
        """How the stream ended (``"SUCCESS"``, ``"LOST"``, …), once the end was reached."""
        return self._position.closed

    def __repr__(self) -> str:
        ended = f" ended {self.closed}" if self.closed else ""
        return f"<{type(self).__name__} of {self.slot} at {self.offset}{ended}>"


class Reader(_Reading, Iterator[T]):
    """Iterates over a stream's chunks, live, until it ends. Not thread-safe.

    May be made before the stream exists. Lost connections are re-made, and reading goes on
    where it was; only when no chunk came for ``timeout`` seconds it raises. It holds a
    connection until it ends or is closed: leave a loop early only inside ``with reader:``.

    Args:
        store, slot: what to read.
        offset: a sequence number; negative for the last n; ``"now"`` for what comes.
        timeout: seconds without a chunk; ``None`` waits for ever (but not for a store that
            cannot be reached). The consumer's own time between two chunks does not count.
        recheck: seconds of silence after which the log itself is looked at.
        decode: from bytes and content type to what is yielded.
        on_idle: called after such a silence; answers how the run ended if it is over.
        ends_with_run: the store does not close streams at their run's end; that ends it, too.

    Raises:
        InvalidOffset: ``offset`` is neither an integer nor ``"now"``.

    Raises (while iterating):
        ReadTimeout: no chunk for ``timeout`` seconds; carries the offset.
        OffsetGone: the offset lies before the oldest retained chunk.
        StoreUnavailable: the store was away for the whole timeout.
        StreamNotFound: the stream was deleted while it was read.
        ChunksLost: the store has lost chunks that were read already.
        ConfigurationError: the store refuses to be read (password, permission).
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
        recheck: float = 5.0,
        decode: Decode = decode_chunk,
        on_idle: OnIdle | None = None,
        ends_with_run: bool = False,
    ) -> None:
        self._position = Position(slot, offset, timeout, recheck, decode, ends_with_run)
        self._store = store
        self._on_idle = on_idle
        self._stopped = False
        # Not a method of this object: no cycle, so a reader that is let go of is closed at once.
        self._chunks = _chunks(store, self._position, on_idle)

    def __iter__(self) -> Iterator[T]:
        return self._current()  # without a Python call per chunk in between

    def __next__(self) -> T:
        return cast("T", next(self._current()))

    def close(self) -> None:
        """Stop reading and release the connection; safe to repeat."""
        self._stopped = True
        self._chunks.close()

    def _current(self) -> Generator[Any, None, None]:
        """Where the iteration is; after an error (a timeout, say) it goes on at the offset."""
        chunks: Any = self._chunks
        if chunks.gi_frame is None and self.closed is None and not self._stopped:
            self._chunks = _chunks(self._store, self._position, self._on_idle)
        return self._chunks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class AsyncReader(_Reading, AsyncIterator[T]):
    """:class:`Reader` for an event loop: ``async for chunk in reader``.

    Cancelling the task that iterates closes the connection; leave a loop early only inside
    ``async with reader:``.
    """

    def __init__(
        self,
        store: AsyncStore,
        slot: Slot,
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
        recheck: float = 5.0,
        decode: Decode = decode_chunk,
        on_idle: AsyncOnIdle | None = None,
        ends_with_run: bool = False,
    ) -> None:
        self._position = Position(slot, offset, timeout, recheck, decode, ends_with_run)
        self._store = store
        self._on_idle = on_idle
        self._stopped = False
        self._chunks = _achunks(store, self._position, on_idle)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await anext(self._current())

    async def aclose(self) -> None:
        """Stop reading and release the connection; safe to repeat."""
        self._stopped = True
        await self._chunks.aclose()

    def _current(self) -> AsyncGenerator[Any, None]:
        """See :meth:`Reader._current`: also after ``asyncio.wait_for`` cancelled a wait."""
        chunks: Any = self._chunks
        if chunks.ag_frame is None and self.closed is None and not self._stopped:
            self._chunks = _achunks(self._store, self._position, self._on_idle)
        return self._chunks

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()


def _chunks(store: Store, position: Position, on_idle: OnIdle | None) -> Generator[Any]:
    position.start_waiting()
    with closing(_pages(store, position)) as pages:
        for page in pages:
            if page.entries:
                head = cast("Head", page.head)
                for entry in page.entries:
                    for chunk in position.unread(entry, head.content_type):
                        position.offset += 1
                        yield chunk
                position.start_waiting()
            if position.took(page):
                state, missing = _ended(store, position.slot, page, on_idle)
                if position.ended_with_run(state, missing=missing):
                    return
                position.check_timeout(state)


def _pages(store: Store, position: Position) -> Generator[Page]:
    """Pages of the store from the position on, across lost connections."""
    while True:
        try:
            if not position.resolved:
                position.resolve(_head(store, position.slot))
            follow = store.follow(position.slot, position.offset, idle=position.idle)
            with closing(cast("Generator[Page]", follow)) as pages:
                yield from pages
            return
        except StoreUnavailable as error:
            time.sleep(position.pause_after(error))
        except OffsetGone as error:
            position.start_again(error)


def _ended(store: Store, slot: Slot, page: Page, on_idle: OnIdle | None) -> tuple[str | None, bool]:
    """How the run ended, if it is over; and whether there is no stream then.

    The stream is asked for after the run: the page may be older than the stream, and a short
    run opens it and is over before anybody looks twice.
    """
    if on_idle is None:
        return None, False
    try:
        state = on_idle()
        return state, bool(state) and page.head is None and _head(store, slot) is None
    except StoreUnavailable:
        return None, False  # the next look at the log fails, too, and is repeated


def _head(store: Store, slot: Slot) -> Head | None:
    try:
        return store.head(slot)
    except StreamNotFound:
        return None


async def _achunks(
    store: AsyncStore, position: Position, on_idle: AsyncOnIdle | None
) -> AsyncGenerator[Any]:
    position.start_waiting()
    async with aclosing(_apages(store, position)) as pages:
        async for page in pages:
            if page.entries:
                head = cast("Head", page.head)
                for entry in page.entries:
                    for chunk in position.unread(entry, head.content_type):
                        position.offset += 1
                        yield chunk
                position.start_waiting()
            if position.took(page):
                state, missing = await _aended(store, position.slot, page, on_idle)
                if position.ended_with_run(state, missing=missing):
                    return
                position.check_timeout(state)


async def _apages(store: AsyncStore, position: Position) -> AsyncGenerator[Page]:
    while True:
        try:
            if not position.resolved:
                position.resolve(await _ahead(store, position.slot))
            follow = store.follow(position.slot, position.offset, idle=position.idle)
            async with aclosing(cast("AsyncGenerator[Page]", follow)) as pages:
                async for page in pages:
                    yield page
            return
        except StoreUnavailable as error:
            await asyncio.sleep(position.pause_after(error))
        except OffsetGone as error:
            position.start_again(error)


async def _aended(
    store: AsyncStore, slot: Slot, page: Page, on_idle: AsyncOnIdle | None
) -> tuple[str | None, bool]:
    """See :func:`_ended`."""
    if on_idle is None:
        return None, False
    try:
        state = await on_idle()
        return state, bool(state) and page.head is None and await _ahead(store, slot) is None
    except StoreUnavailable:
        return None, False


async def _ahead(store: AsyncStore, slot: Slot) -> Head | None:
    try:
        return await store.head(slot)
    except StreamNotFound:
        return None
