"""The Redis store: the sync shell around :mod:`celery_streams.stores.commands`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from celery_streams.contracts import (
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Head,
    Page,
    Producer,
)
from celery_streams.redis.client import Lane, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.commands import Commands
from celery_streams.stores.cursor import PAGE_LIMIT, Cursor, Next
from celery_streams.stores.subscription import Subscription


class RedisStore:
    """A :class:`~celery_streams.contracts.Store` on Valkey or Redis 7+, single or cluster."""

    def __init__(self, link: RedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._settings = settings
        self._commands = Commands(layout, settings)
        self._lane = Lane()
        self._lane_free = threading.Lock()

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        append = self._commands.append(Append(slot, batch, producer, credentials))
        result = self._link.call_many([append], wait_replicas=self._settings.wait_replicas)[0]
        if isinstance(result, Exception):
            raise result
        return result

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """See :meth:`celery_streams.contracts.Store.append_many`. One round trip a node."""
        calls = [self._commands.append(append) for append in appends]
        # The flusher's thread is alone here, as a rule.
        lane = self._lane if self._lane_free.acquire(blocking=False) else None
        try:
            return self._link.call_many(
                calls, wait_replicas=self._settings.wait_replicas, lane=lane
            )
        finally:
            if lane is not None:
                self._lane_free.release()

    def shut(self) -> None:
        """Close the connections that :meth:`append_many` keeps, unless they are in use."""
        if self._lane_free.acquire(blocking=False):
            try:
                self._lane.close()
            finally:
                self._lane_free.release()

    def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""
        opening = self._link.call(self._commands.read(slot, offset, limit))
        if opening.complete:
            return opening.page
        return opening.joined(self._link.call_many(self._commands.read_on(slot, opening)))

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        """See :meth:`celery_streams.contracts.Store.follow`.

        Opens its subscription only once it has caught up with an open stream, then reads the
        log once more: nothing falls between the log and the channel.
        """
        cursor = Cursor(slot, offset)
        due = time.monotonic() + idle
        live: Subscription | None = None
        with ExitStack() as stack:
            while True:
                page, step = cursor.from_log(self.read(slot, cursor.offset))
                if page.entries or step is Next.STOP:
                    yield page
                    due = time.monotonic() + idle
                if step is Next.LISTEN and live is None:
                    live = stack.enter_context(Subscription(self._link, self._layout.live(slot)))
                    continue
                while step is Next.LISTEN and live is not None:
                    message = live.get(due - time.monotonic())
                    if message is None:
                        yield Page((), cursor.head)
                        due = time.monotonic() + idle
                        break
                    fresh, step = cursor.from_live(message)
                    if fresh is not None:
                        yield fresh
                        due = time.monotonic() + idle
                if step is Next.STOP:
                    return

    def head(self, slot: Slot) -> Head:
        """See :meth:`celery_streams.contracts.Store.head`."""
        return self._link.call(self._commands.head(slot))

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        """See :meth:`celery_streams.contracts.Store.close`."""
        return self._link.call(self._commands.close(slot, credentials, attempt))

    def delete(self, slot: Slot) -> bool:
        """See :meth:`celery_streams.contracts.Store.delete`."""
        return self._link.call(self._commands.delete(slot))
