"""Which streams there are: recently opened ones, and those that a pattern matches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from celery_streams.redis import recording
from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Scope, Slot
from celery_streams.stores.patterns import Pattern

#: Entries looked at in one round trip.
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stream, and when it was opened last (Unix seconds, the server's clock)."""

    slot: Slot
    opened_at: float


class StreamIndex:
    """The index on Redis: a sorted set for runs, for sessions and for clients' own streams.

    A stream is in it from its creation on. Entries of streams that exist no longer are dropped
    when they are found.
    """

    def __init__(self, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._settings = settings

    async def record(self, slot: Slot) -> None:
        """Note a stream that was opened elsewhere than by the store or the authority."""
        await self._link.call(recording.record(self._layout, self._settings, slot))

    async def recent(
        self, scope: Scope, limit: int, *, before: float | None = None
    ) -> list[Recorded]:
        """The streams opened last, latest first; with ``before``, those opened before then."""
        found: list[Recorded] = []
        high, skip = "+inf" if before is None else f"({before * 1000:.0f}", 0
        while len(found) < limit:
            page = await self._link.call(
                self._range(scope, high, "-inf", ("REV", "BYSCORE", "LIMIT", skip, _PAGE))
            )
            alive, dropped = await self._living(scope, page)
            found += alive
            if len(page) < _PAGE:
                break
            skip += len(page) - dropped
        return found[:limit]

    async def opened_at(self, slot: Slot) -> float | None:
        """When a stream was opened last; ``None``: it is not in the index."""
        call = Call("ZSCORE", (self._layout.index(slot.scope),), (recording.name(slot),), _score)
        return await self._link.call(call)

    async def since(
        self, scope: Scope, opened_at: float, limit: int | None = None
    ) -> list[Recorded]:
        """The streams opened at that time or later, in this order. Not all need exist (yet)."""
        options = ("BYSCORE",) if limit is None else ("BYSCORE", "LIMIT", 0, limit)
        return await self._link.call(self._range(scope, f"{opened_at * 1000:.0f}", "+inf", options))

    async def scan(self, pattern: Pattern | None = None) -> AsyncIterator[list[Recorded]]:
        """All streams that ``pattern`` matches, page by page, in no order.

        One that is opened meanwhile may be missed; one may come twice.
        """
        for scope in ("run", "session", "path") if pattern is None else pattern.scopes:
            cursor = b"0"
            while True:
                cursor, page = await self._link.call(self._scan(scope, cursor))
                if pattern is not None:
                    page = [each for each in page if pattern.matches(str(each.slot))]
                alive, _ = await self._living(scope, page)
                if alive:
                    yield alive
                if int(cursor) == 0:
                    break

    async def _living(self, scope: Scope, page: Sequence[Recorded]) -> tuple[list[Recorded], int]:
        """Those of the entries whose streams exist; how many of the others were dropped."""
        alive = await self._link.call_many(
            [recording.exists(self._layout, each.slot) for each in page]
        )
        for each in alive:
            if isinstance(each, Exception):
                raise each
        dead = recording.dead([(each.slot, each.opened_at) for each in page], alive)
        if dead:
            await self._link.call(recording.drop(self._layout, scope, dead))
        return [each for each, lives in zip(page, alive, strict=True) if lives], len(dead)

    def _range(
        self, scope: Scope, start: str, stop: str, options: tuple[str | int, ...]
    ) -> Call[list[Recorded]]:
        def parse(reply: list[bytes]) -> list[Recorded]:
            return [Recorded(*each) for each in recording.entries(scope, reply)]

        key = self._layout.index(scope)
        return Call("ZRANGE", (key,), (start, stop, *options, "WITHSCORES"), parse)

    def _scan(self, scope: Scope, cursor: bytes) -> Call[tuple[bytes, list[Recorded]]]:
        def parse(reply: list[bytes | list[bytes]]) -> tuple[bytes, list[Recorded]]:
            after, members = reply
            assert isinstance(after, bytes)
            assert isinstance(members, list)
            return after, [Recorded(*each) for each in recording.entries(scope, members)]

        return Call("ZSCAN", (self._layout.index(scope),), (cursor, "COUNT", _PAGE), parse)


def _score(reply: bytes | None) -> float | None:
    return None if reply is None else float(reply) / 1000
