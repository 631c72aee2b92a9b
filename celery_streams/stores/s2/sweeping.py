"""Deleting what is left on S2 of clients' streams that Redis knows no longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.slots import Slot
from celery_streams.stores.s2.asynchronous import AsyncS2Store
from celery_streams.stores.s2.client import translating

#: Streams looked at in one sweep: more than are created from one to the next.
_PAGE = 256
#: How old a stream must be: it is made before Redis is told of it.
GRACE = timedelta(hours=1)
#: Whom an error names.
_ALL = Slot("path", "clients' streams", "")


class Sweeper:
    """Goes through the clients' streams of a basin, some at a time, and round again.

    A stream whose lifetime is over is gone in Redis by itself; its S2 stream is found here.
    """

    def __init__(
        self, store: AsyncS2Store, link: AsyncRedisLink, layout: Layout, *, grace: timedelta = GRACE
    ) -> None:
        self._store = store
        self._link = link
        self._layout = layout
        self._grace = grace
        self._last = ""

    async def sweep(self) -> int:
        """Look at the next streams; returns how many were deleted.

        Raises:
            StoreUnavailable: S2 or Redis cannot be reached.
        """
        prefix = f"{self._layout.prefix}/paths/"
        basin = self._store.clients.basin(self._store.token)
        with translating(_ALL):
            page = await basin.list_streams(
                prefix=prefix, start_after=max(self._last, prefix), limit=_PAGE
            )
        self._last = page.items[-1].name if page.has_more and page.items else ""
        old = datetime.now(UTC) - self._grace
        found = [
            slot
            for each in page.items
            if each.deleted_at is None
            and each.created_at <= old
            and (slot := _slot(each.name.removeprefix(prefix))) is not None
        ]
        calls: list[Call[Any]] = [self._identity(slot) for slot in found]
        deleted = 0
        for slot, identity in zip(found, await self._link.call_many(calls), strict=True):
            if isinstance(identity, Exception):
                raise identity
            if identity != slot.key:
                deleted += await self._store.delete(slot)
        return deleted

    def _identity(self, slot: Slot) -> Call[str | None]:
        """Of the stream that has the name now, if any has."""
        meta = self._layout.meta(Slot("path", slot.owner, "default"))
        return Call("HGET", (meta,), ("id",), lambda found: found and found.decode())


def _slot(name: str) -> Slot | None:
    """What :mod:`.serving` calls the stream; ``None`` for a name that was too long for S2."""
    owner, _, identity = name.partition("/")
    return Slot("path", owner, identity) if owner and identity else None
