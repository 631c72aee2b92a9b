"""Readers: :class:`Reader` for threads and processes, :class:`AsyncReader` for event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from celery_streams.chunks import decode as decode_chunk
from celery_streams.contracts import AsyncStore, Head, Offset, Page, Store
from celery_streams.errors import StoreUnavailable, StreamNotFound
from celery_streams.reading.position import Decode, Position
from celery_streams.slots import Slot


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


class Reader(_Reading, Iterator[Any]):
    """Iterates over a stream's chunks, live, until it ends. Not thread-safe.

    May be made before the stream exists. Lost connections are re-made, and reading goes on
    where it was; only when no chunk came for ``timeout`` seconds it raises.

    Args:
        store, slot: what to read.
        offset: a sequence number; negative for the last n; ``"now"`` for what comes.
        timeout: seconds without a chunk; ``None`` waits for ever. The consumer's own time
            between two chunks does not count.
        recheck: seconds of silence after which the log itself is looked at.
        decode: from bytes and content type to what is yielded.
        on_idle: called after such a silence; answers how the run ended if it is over.

    Raises (while iterating):
        ReadTimeout: no chunk for ``timeout`` seconds; carries the offset.
        OffsetGone: the offset lies before the oldest retained chunk.
        StoreUnavailable: the store was away for the whole timeout.
        StreamNotFound: the stream was deleted while it was read.
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
        on_idle: Callable[[], str | None] | None = None,
    ) -> None:
        self._position = Position(slot, offset, timeout, recheck, decode)
        self._store = store
        self._on_idle = on_idle
        self._chunks = self._read()

    def __iter__(self) -> Iterator[Any]:
        return self._chunks

    def __next__(self) -> Any:
        return next(self._chunks)

    def close(self) -> None:
        """Stop reading and release the connection; safe to repeat."""
        self._chunks.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> Iterator[Any]:
        position = self._position
        position.resume_waiting()
        for page in self._pages():
            if page.entries:
                for data in position.unread(page):
                    chunk = position.decoded(data, page)
                    position.offset += 1
                    yield chunk
                position.resume_waiting()
            position.reached_end(page)
            if page.entries or position.closed:
                continue
            if position.ended_without_stream(page, self._look_after_run()):
                return
            position.check_timeout()

    def _pages(self) -> Iterator[Page]:
        position = self._position
        while True:
            try:
                if not position.resolved:
                    position.resolve(self._head())
                yield from self._store.follow(position.slot, position.offset, idle=position.idle)
                return
            except StoreUnavailable as error:
                time.sleep(position.pause_after(error))

    def _head(self) -> Head | None:
        try:
            return self._store.head(self._position.slot)
        except StreamNotFound:
            return None

    def _look_after_run(self) -> str | None:
        return None if self._on_idle is None else self._on_idle()


class AsyncReader(_Reading, AsyncIterator[Any]):
    """:class:`Reader` for an event loop: ``async for chunk in reader``."""

    def __init__(
        self,
        store: AsyncStore,
        slot: Slot,
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
        recheck: float = 5.0,
        decode: Decode = decode_chunk,
        on_idle: Callable[[], Awaitable[str | None]] | None = None,
    ) -> None:
        self._position = Position(slot, offset, timeout, recheck, decode)
        self._store = store
        self._on_idle = on_idle
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._chunks

    async def __anext__(self) -> Any:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Stop reading and release the connection; safe to repeat."""
        await self._chunks.aclose()  # type: ignore[attr-defined]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _read(self) -> AsyncIterator[Any]:
        position = self._position
        position.resume_waiting()
        async for page in self._pages():
            if page.entries:
                for data in position.unread(page):
                    chunk = position.decoded(data, page)
                    position.offset += 1
                    yield chunk
                position.resume_waiting()
            position.reached_end(page)
            if page.entries or position.closed:
                continue
            if position.ended_without_stream(page, await self._look_after_run()):
                return
            position.check_timeout()

    async def _pages(self) -> AsyncIterator[Page]:
        position = self._position
        while True:
            try:
                if not position.resolved:
                    position.resolve(await self._head())
                pages = self._store.follow(position.slot, position.offset, idle=position.idle)
                try:
                    async for page in pages:
                        yield page
                finally:
                    await pages.aclose()  # type: ignore[attr-defined]
                return
            except StoreUnavailable as error:
                await asyncio.sleep(position.pause_after(error))

    async def _head(self) -> Head | None:
        try:
            return await self._store.head(self._position.slot)
        except StreamNotFound:
            return None

    async def _look_after_run(self) -> str | None:
        return None if self._on_idle is None else await self._on_idle()
