"""What the store tests drive: one store, sync or asyncio, and producers that write to it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Self, TypeVar, cast

from celery_streams.chunks import decode, encoder_for, frame, unframe
from celery_streams.contracts import (
    JSON,
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Entry,
    Head,
    Page,
    Producer,
    Store,
)
from celery_streams.credentials import RedisAuthority
from celery_streams.errors import StoreUnavailable
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import AsyncRedisLink, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.runs.registry import RunRegistry
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.redis import RedisStore
from celery_streams.stores.redis_async import AsyncRedisStore

T = TypeVar("T")

#: Seconds of silence before a follower in these tests looks at the log itself: for tests in
#: which it must not have to.
NEVER = 60.0

RUN = "run-1"
SLOT = Slot.run(RUN)


class LoopStore:
    """:class:`AsyncRedisStore` behind the sync protocol: each call runs in one event loop."""

    def __init__(self, settings: StreamsSettings, layout: Layout) -> None:
        assert settings.url is not None
        self._runner = asyncio.Runner()
        link = AsyncRedisLink(parse_address(settings.url.get_secret_value()), settings)
        self.inner = AsyncRedisStore(link, layout, settings)

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        return self.run(self.inner.append(slot, batch, producer, credentials))

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        return self.run(self.inner.append_many(appends))

    def read(self, slot: Slot, offset: int, *, limit: int = 500) -> Page:
        return self.run(self.inner.read(slot, offset, limit=limit))

    def head(self, slot: Slot) -> Head:
        return self.run(self.inner.head(slot))

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        return self.run(self.inner.close(slot, credentials, attempt))

    def delete(self, slot: Slot) -> bool:
        return self.run(self.inner.delete(slot))

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        pages = cast("Any", self.inner.follow(slot, offset, idle=idle))
        try:
            while True:
                try:
                    yield self.run(anext(pages))
                except StopAsyncIteration:
                    return
        finally:
            self.run(pages.aclose())

    def shut(self) -> None:
        self.run(self.inner.aclose())
        self._runner.close()

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self._runner.run(wait())


class Backend:
    """A store of one kind on one server, its control plane and its runs; a context manager."""

    def __init__(self, settings: StreamsSettings, kind: str = "sync") -> None:
        assert settings.url is not None
        self.settings = settings
        self.layout = Layout(settings.prefix)
        self.link = RedisLink(parse_address(settings.url.get_secret_value()), settings)
        self.authority = RedisAuthority(self.link, self.layout, settings)
        self.runs = RunRegistry(self.link, self.layout, settings)
        self.store: Store
        self.loop: LoopStore | None = None
        if kind == "asyncio":
            self.loop = LoopStore(settings, self.layout)
            self.store = self.loop
        else:
            self.store = RedisStore(self.link, self.layout, settings)

    def open(self, slot: Slot = SLOT, *, content_type: str = JSON) -> Credentials:
        """Register a stream and mint credentials for it."""
        return self.authority.initialize(slot, content_type=content_type)

    def writer(
        self, slot: Slot = SLOT, attempt: Attempt | None = None, *, content_type: str = JSON
    ) -> Hand:
        """A producer with credentials of its own."""
        return Hand(self.store, self.open(slot, content_type=content_type), attempt, content_type)

    def chunks(self, slot: Slot = SLOT, offset: int = 0) -> list[Any]:
        """Every chunk from ``offset`` on."""
        found: list[Any] = []
        while (page := self.store.read(slot, offset + len(found))).entries:
            assert page.head is not None
            found += chunks_of(page.entries, page.head.content_type, offset + len(found))
        return found

    def follow(self, slot: Slot = SLOT, offset: int = 0, *, idle: float = NEVER) -> list[Any]:
        """Every chunk from ``offset`` on, live, until the stream ends."""
        found: list[Any] = []
        with closing(cast("Any", self.store.follow(slot, offset, idle=idle))) as pages:
            for page in pages:
                if page.entries:
                    found += chunks_of(page.entries, page.head.content_type, offset + len(found))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.loop is not None:
            self.loop.shut()
        self.link.close()


class Hand:
    """One producer: numbers its batches, and can send the last one again."""

    _ids = itertools.count()

    def __init__(
        self,
        store: Store,
        credentials: Credentials,
        attempt: Attempt | None = None,
        content_type: str = JSON,
    ) -> None:
        self.store = store
        self.credentials = credentials
        self.slot = credentials.slot
        self.attempt = attempt or Attempt(self.slot.owner, f"attempt-of-{self.slot.owner}")
        self.producer = Producer(f"{self.attempt.run_id}/{next(self._ids)}", self.attempt)
        self.seq = 0
        self.last: Batch | None = None
        self._encode = encoder_for(content_type)
        self._content_type = content_type

    def batch(self, *chunks: object) -> Batch:
        """The next batch, not sent yet."""
        payload = frame([self._encode(chunk) for chunk in chunks], self._content_type)
        return Batch(self.seq, payload, len(chunks))

    def append(self, *chunks: object) -> Appended:
        """Append the chunks as one batch, once."""
        self.last = self.batch(*chunks)
        appended = self.store.append(self.slot, self.last, self.producer, self.credentials)
        self.seq += 1
        return appended

    def insist(self, *chunks: object) -> Appended:
        """Append the chunks, sending again while the store is unavailable, as the flusher does."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.append(*chunks)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise

    def resend(self) -> Appended:
        """The last batch again, exactly as it was sent."""
        assert self.last is not None
        return self.store.append(self.slot, self.last, self.producer, self.credentials)

    def close(self) -> Head:
        return self.store.close(self.slot, self.credentials, self.attempt)


def chunks_of(entries: Iterable[Entry], content_type: str = JSON, offset: int = 0) -> list[Any]:
    """The decoded chunks of entries that follow each other, from ``offset`` on."""
    found: list[Any] = []
    for entry in entries:
        done = offset + len(found) - entry.start
        assert done >= 0, f"chunks {offset + len(found)} to {entry.start - 1} are missing"
        pieces = unframe(entry.payload, content_type)
        assert len(pieces) == entry.count
        found += [decode(piece, content_type) for piece in pieces[done:]]
    return found


class Background(threading.Thread):
    """A thread whose result or error ``result()`` gives back."""

    def __init__(self, action: Any, *args: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self._action = lambda: action(*args, **options)
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self.start()

    def run(self) -> None:
        try:
            self._outcome = (self._action(), None)
        except BaseException as error:
            self._outcome = (None, error)

    def result(self, timeout: float = 30.0) -> Any:
        self.join(timeout)
        assert not self.is_alive(), f"still running after {timeout:g} s"
        value, error = self._outcome
        if error is not None:
            raise error
        return value
