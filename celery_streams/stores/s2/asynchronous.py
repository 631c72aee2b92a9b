"""The S2 store for event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery_streams.contracts import (
    Answer,
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Entry,
    Head,
    Page,
    Producer,
)
from celery_streams.errors import OffsetGone, StreamError, StreamNotFound
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.commands import CLOSED
from celery_streams.stores.cursor import PAGE_LIMIT
from celery_streams.stores.pages import PAGE_BYTES
from celery_streams.stores.s2.address import S2Address, stream_name
from celery_streams.stores.s2.client import Clients, check_environment, translating
from celery_streams.stores.s2.state import (
    Known,
    entry_of,
    known_at,
    last_known,
    timestamp_of,
)
from celery_streams.stores.s2.view import View

if TYPE_CHECKING:
    from s2_sdk import S2Stream, SequencedRecord

#: Streams to append to of which one process remembers the tail.
_MOST_VIEWS = 10_000
#: Seconds between looks for a stream that does not exist yet: the first, and the longest.
_FIRST_LOOK, _LONGEST_LOOK = 0.05, 1.0
#: Most records in one answer.
_MOST_RECORDS = 1000


class AsyncS2Store:
    """:class:`~celery_streams.stores.s2.store.S2Store` for one event loop.

    Writing uses the credentials it is given; reading and deleting the address's own token.
    """

    def __init__(self, address: S2Address, settings: StreamsSettings) -> None:
        check_environment()
        self._address = address
        self._settings = settings
        self.clients = Clients(address, settings)
        self._views: dict[Slot, View] = {}

    async def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        result = (await self.append_many([Append(slot, batch, producer, credentials)]))[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """See :meth:`celery_streams.contracts.Store.append_many`. All streams at the same time."""
        loop = asyncio.get_running_loop()
        results = [loop.create_future() for _ in appends]

        def answer(answers: Sequence[tuple[int, Appended | Exception]]) -> None:
            for place, result in answers:
                if not results[place].done():  # nobody has stopped waiting
                    results[place].set_result(result)

        self.submit(appends, answer)
        return list(await asyncio.gather(*results))

    def submit(self, appends: Sequence[Append], answer: Answer) -> None:
        """See :meth:`celery_streams.contracts.PipelinedStore.submit`."""
        for place, append in enumerate(appends):

            def done(result: Appended | Exception, place: int = place) -> None:
                answer([(place, result)])

            self.view(append.slot).submit(append, done)

    async def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""
        page, _ = await self._page(slot, offset, limit)
        return page

    async def follow(self, slot: Slot, offset: int, *, idle: float) -> AsyncIterator[Page]:
        """See :meth:`celery_streams.contracts.Store.follow`.

        Catches up page by page, then opens a read session where the last page ended.
        """
        due = time.monotonic() + idle
        look = _FIRST_LOOK
        while True:
            page, known = await self._page(slot, offset, PAGE_LIMIT)
            if known is None or page.head is None:
                if time.monotonic() >= due:
                    yield page
                    due = time.monotonic() + idle
                await asyncio.sleep(max(0.0, min(look, due - time.monotonic())))
                look = min(2 * look, _LONGEST_LOOK)
                continue
            at_end = not page.entries or page.entries[-1].end >= page.head.end
            if page.entries:
                offset = page.entries[-1].end
            ended = at_end and page.head.closed is not None
            if page.entries or ended:
                yield page
            if ended:
                return
            if at_end:
                break
        async for page in self._live(slot, offset, known, idle):
            yield page

    async def head(self, slot: Slot) -> Head:
        """See :meth:`celery_streams.contracts.Store.head`."""
        known = await self.tail(slot)
        if known is None:
            raise StreamNotFound(f"there is no stream {slot}, or it has expired")
        return known.head(slot, await self._oldest(slot, known))

    async def close(
        self, slot: Slot, credentials: Credentials, attempt: Attempt, *, state: str = CLOSED
    ) -> Head:
        """See :meth:`celery_streams.contracts.Store.close`."""
        return await self.view(slot).close(attempt, state, credentials.token)

    async def delete(self, slot: Slot) -> bool:
        """See :meth:`celery_streams.contracts.Store.delete`."""
        self._views.pop(slot, None)
        name = stream_name(self._settings.prefix, slot)
        try:
            with translating(slot):
                await self.clients.basin(self._address.token).delete_stream(name)
        except StreamNotFound:
            return False
        return True

    @property
    def token(self) -> str:
        """The address's own token."""
        return self._address.token

    async def aclose(self) -> None:
        """Close the loop's connections."""
        views, self._views = list(self._views.values()), {}
        await asyncio.gather(*(view.shut() for view in views))
        await self.clients.close()

    def view(self, slot: Slot) -> View:
        """The stream as this loop appends to it."""
        view = self._views.pop(slot, None)
        if view is None:
            view = View(
                slot,
                lambda token: self.clients.stream(slot, token, retry=False),
                self._settings.max_chunks,
                self.clients.received,
            )
        self._views[slot] = view  # the newest come last
        if len(self._views) > _MOST_VIEWS:
            oldest = next(each for each, its in self._views.items() if not its.busy)
            del self._views[oldest]
        return view

    def stream(self, slot: Slot) -> S2Stream:
        """The S2 stream, as whoever has the address's own token may use it."""
        return self.clients.stream(slot, self._address.token)

    async def _page(self, slot: Slot, offset: int, limit: int) -> tuple[Page, Known | None]:
        """A page, and the stream as of its head."""
        try:
            known, (entries, latest) = await asyncio.gather(
                self.tail(slot), self._fetch(slot, offset, limit)
            )
            if not entries and known is not None and offset < known.end:
                # Appended between the two, as a rule; or it has expired.
                entries, latest = await self._fetch(slot, offset, limit)
        except StreamNotFound:
            return Page((), None), None
        if known is None:
            return Page((), None), None
        if latest is not None and latest.tail > known.tail:
            known = latest
        first = known.state.first
        kept = tuple(entry for entry in entries if entry.end > max(first, offset))
        if offset < known.end and (not kept or kept[0].start > offset):
            first = max(first, kept[0].start if kept else known.end)
            if not kept or offset < first:
                raise gone(slot, offset, first)
        return Page(kept[:limit], known.head(slot, first)), known

    async def _fetch(self, slot: Slot, offset: int, limit: int) -> tuple[list[Entry], Known | None]:
        """Entries from the one that holds ``offset`` on, and the stream as of the last."""
        from s2_sdk import ReadLimit, ReadUnwrittenError, SeqNum, Timestamp

        entries: list[Entry] = []
        latest: Known | None = None
        size = 0
        start: Any = Timestamp(timestamp_of(offset + 1))
        while len(entries) < limit and size < PAGE_BYTES:
            wanted = ReadLimit(count=min(_MOST_RECORDS, limit - len(entries) + 1))
            try:
                with translating(slot):
                    try:
                        records = (await self.stream(slot).read(start=start, limit=wanted)).records
                    except ReadUnwrittenError:
                        break
            except StreamNotFound:
                break
            if not records:
                break
            for record in records:
                if (entry := entry_of(record)) is not None:
                    entries.append(entry)
                    size += len(entry.payload)
                if len(entries) >= limit or size >= PAGE_BYTES:
                    break
            else:
                latest = known_at(records[-1]) or latest
            start = SeqNum(records[-1].seq_num + 1)
        return entries, latest

    async def tail(self, slot: Slot) -> Known | None:
        """The stream as of its last record; ``None`` if all of them have expired."""
        with translating(slot):
            known, _ = await last_known(self.stream(slot))
        return known

    async def _oldest(self, slot: Slot, known: Known) -> int | None:
        """The oldest chunk there is, if retention may have removed some."""
        from s2_sdk import ReadLimit, ReadUnwrittenError, SeqNum

        if time.time() < known.state.opened + self._settings.retention:
            return None
        with translating(slot):
            try:
                batch = await self.stream(slot).read(start=SeqNum(0), limit=ReadLimit(count=10))
            except ReadUnwrittenError:
                return known.end
        return next(
            (entry.start for record in batch.records if (entry := entry_of(record))), known.end
        )

    async def _live(
        self, slot: Slot, offset: int, known: Known, idle: float
    ) -> AsyncIterator[Page]:
        from s2_sdk import SeqNum

        session = self.stream(slot).read_session(start=SeqNum(known.tail))
        waiting: asyncio.Future[Any] | None = None
        due = time.monotonic() + idle
        try:
            while True:
                if waiting is None:
                    waiting = asyncio.ensure_future(anext(session))
                await asyncio.wait({waiting}, timeout=max(0.0, due - time.monotonic()))
                if not waiting.done():
                    yield Page((), known.head(slot))
                    due = time.monotonic() + idle
                    continue
                done, waiting = waiting, None
                with translating(slot):
                    try:
                        records = done.result().records
                    except StopAsyncIteration:
                        raise StreamError(f"S2 ended a read of {slot} that has no end") from None
                self.clients.received()
                entries, known = _newer(slot, records, offset, known)
                if entries:
                    offset = entries[-1].end
                ended = known.state.closed is not None
                if entries or ended:
                    yield Page(entries, known.head(slot))
                    due = time.monotonic() + idle
                if ended:
                    return
        finally:
            if waiting is not None:
                waiting.cancel()
                with suppress(BaseException):
                    await waiting
            await session.close()


def gone(slot: Slot, offset: int, first: int) -> OffsetGone:
    """The error for an offset before the oldest chunk that is kept."""
    return OffsetGone(
        f"offset {offset} of {slot} is gone: the oldest chunk kept is {first}. Read from there, or "
        "raise CELERY_STREAMS_MAX_CHUNKS or CELERY_STREAMS_RETENTION",
        first=first,
    )


def _newer(
    slot: Slot, records: Iterable[SequencedRecord], offset: int, known: Known
) -> tuple[tuple[Entry, ...], Known]:
    """What records of a read session add for a follower who stands at ``offset``."""
    entries: list[Entry] = []
    for record in records:
        known = known_at(record) or known
        entry = entry_of(record)
        if entry is None or entry.end <= offset:
            continue
        if entry.start > offset:
            raise gone(slot, offset, entry.start)
        entries.append(entry)
        offset = entry.end
    return tuple(entries), known
