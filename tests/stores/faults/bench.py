"""A store with all that belongs to it, and short names for what tests do with one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from celery_streams.chunks import encoder_for, frame, unframe
from celery_streams.contracts import (
    JSON,
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Page,
    Producer,
)
from celery_streams.credentials.authority import RedisAuthority
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

_names = itertools.count()


class Bench:
    """Store, authority and registry over one URL; a context manager."""

    def __init__(self, url: str, **overrides: Any) -> None:
        self.settings = StreamsSettings(**{"url": url, "secret": "test secret", **overrides})
        self.address = parse_address(url)
        self.layout = Layout(self.settings.prefix)
        self.link = RedisLink(self.address, self.settings)
        parts = (self.link, self.layout, self.settings)
        self.store = RedisStore(*parts)
        self.authority = RedisAuthority(*parts)
        self.registry = RunRegistry(*parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.link.close()

    def slot(self, key: str = "default") -> Slot:
        """A stream nobody has used."""
        return Slot.run(f"run-{next(_names)}", key)

    def writer(
        self, slot: Slot, attempt: Attempt | None = None, content_type: str = JSON
    ) -> Writer:
        """A producer with credentials of its own; by default all are of the run's one attempt."""
        credentials = self.authority.initialize(slot, content_type=content_type)
        return Writer(
            self, slot, attempt or Attempt(slot.owner, "attempt"), credentials, content_type
        )

    def values(self, slot: Slot, offset: int = 0, *, limit: int = 1000) -> list[Any]:
        """The serialized chunks there are from ``offset`` on, read page by page."""
        found: list[Any] = []
        while True:
            page = self.store.read(slot, offset + len(found), limit=limit)
            if not page.entries:
                return found
            found += unread(page, offset + len(found))

    def with_async_store(self, use: Callable[[AsyncRedisStore], Awaitable[T]]) -> T:
        """Run ``use`` in an event loop with an asyncio store of the same server."""

        async def run() -> T:
            link = AsyncRedisLink(self.address, self.settings)
            try:
                return await use(AsyncRedisStore(link, self.layout, self.settings))
            finally:
                await link.close()

        return asyncio.run(run())


class Writer:
    """One producer on one stream, sending batch after batch."""

    def __init__(
        self,
        bench: Bench,
        slot: Slot,
        attempt: Attempt,
        credentials: Credentials,
        content_type: str = JSON,
    ) -> None:
        self.bench = bench
        self.slot = slot
        self.credentials = credentials
        self.producer = Producer(f"{attempt.run_id}/{next(_names)}", attempt)
        self.seq = 0
        self._content_type = content_type

    def batch(self, *chunks: Any) -> Batch:
        """The next batch, not sent."""
        encode = encoder_for(self._content_type)
        payload = frame([encode(chunk) for chunk in chunks], self._content_type)
        return Batch(self.seq, payload, len(chunks))

    def send(self, batch: Batch) -> Appended:
        """Send ``batch``; the next one gets the next number."""
        appended = self.bench.store.append(self.slot, batch, self.producer, self.credentials)
        self.seq = max(self.seq, batch.seq + 1)
        return appended

    def append(self, *chunks: Any) -> Appended:
        """Send one batch of ``chunks``."""
        return self.send(self.batch(*chunks))

    def insist(self, *chunks: Any, patience: float = 30.0) -> bool:
        """Send one batch until it is acknowledged, as the flusher does; whether it was resent."""
        batch = self.batch(*chunks)
        deadline = time.monotonic() + patience
        resent = False
        while True:
            try:
                self.send(batch)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                if resent:
                    time.sleep(0.005)
                resent = True
            else:
                return resent

    def as_append(self, batch: Batch) -> Append:
        """The arguments of an append, for ``append_many``."""
        return Append(self.slot, batch, self.producer, self.credentials)

    def close(self) -> Any:
        """End the stream."""
        return self.bench.store.close(self.slot, self.credentials, self.producer.attempt)


def delivered(run_id: str) -> Attempt:
    """A run's first delivery."""
    return Attempt(run_id, f"attempt-{next(_names)}")


def retry(run_id: str, generation: int) -> Attempt:
    """The attempt after ``generation`` retries."""
    return Attempt(run_id, f"attempt-{next(_names)}", generation=generation)


def redelivered(run_id: str, generation: int = 0) -> Attempt:
    """A delivery of a message that was delivered before."""
    return Attempt(run_id, f"attempt-{next(_names)}", generation=generation, redelivered=True)


def unread(page: Page, offset: int) -> list[bytes]:
    """The serialized chunks of a page from ``offset`` on."""
    assert page.head is not None
    chunks: list[bytes] = []
    for entry in page.entries:
        pieces = unframe(entry.payload, page.head.content_type)
        assert len(pieces) == entry.count
        at = offset + len(chunks)
        assert entry.start <= at, "chunks are missing"
        chunks += pieces[at - entry.start :]
    return chunks


@contextmanager
def opened(url: str, **overrides: Any) -> Iterator[Bench]:
    """A bench for the length of a block."""
    with Bench(url, **overrides) as bench:
        yield bench
