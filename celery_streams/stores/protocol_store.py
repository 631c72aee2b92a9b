"""The store as the gateway uses it: the protocol's operations on one event loop."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from celery_streams.chunks import frame, unframe
from celery_streams.contracts import JSON, Entry, Head, Page
from celery_streams.errors import OffsetGone, StoreUnavailable, StreamError, StreamNotFound
from celery_streams.protocol import (
    BadFork,
    Conflict,
    Creation,
    Feed,
    ForkPoint,
    Lifetime,
    Post,
    Posted,
    StreamDeleted,
)
from celery_streams.redis import recording
from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Scope, Slot
from celery_streams.stores.commands import Commands
from celery_streams.stores.cursor import PAGE_LIMIT
from celery_streams.stores.feed import RedisFeed
from celery_streams.stores.index import StreamIndex
from celery_streams.stores.protocol_commands import Gone, ProtocolCommands, member

T = TypeVar("T")

#: Forks looked at when somebody asks for a deleted stream.
_SAMPLE = 64


class RedisProtocolStore:
    """A :class:`~celery_streams.protocol.ProtocolStore`; every state of it is in Redis.

    A fork is a copy: it lives on whatever becomes of its source, on whatever cluster node. The
    source only remembers its forks' names, because the protocol wants a deleted stream's name
    to stay taken while there are any. A fork that expired is forgotten when somebody next asks
    for the source.
    """

    def __init__(self, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._settings = settings
        self._reads = Commands(layout, settings)
        self._commands = ProtocolCommands(layout, settings)

    @property
    def connections(self) -> int:
        """How many connections it has open, besides those of its feeds."""
        return self._link.connections

    async def create(self, slot: Slot, creation: Creation) -> tuple[bool, Head]:
        """See :meth:`celery_streams.protocol.ProtocolStore.create`."""
        identity = secrets.token_hex(8)
        if creation.fork is None:
            return await self._create(slot, creation, identity)
        try:
            head = (await self.heads([slot]))[0]
            if isinstance(head, StreamDeleted):
                raise Conflict(f"{slot} was deleted, and forks of it exist; choose another path")
            if isinstance(head, Head):
                # What the request leaves open, it takes as it is.
                lifetime = Lifetime(head.ttl, head.expires_at)
                known = _completed(creation, head.content_type, lifetime)
                return await self._create(slot, known, identity, copied=-1)
            created, forked = await self._fork(slot, creation, creation.fork, identity)
        except StoreUnavailable:
            raise  # it may exist; if not, that is found when somebody asks for a deleted source
        except StreamError:
            await self._release(creation.fork.source, [member(slot, identity)])
            raise
        if not created:
            await self._release(creation.fork.source, [member(slot, identity)])
        return created, forked

    async def post(self, slot: Slot, post: Post) -> Posted:
        """See :meth:`celery_streams.protocol.ProtocolStore.post`."""
        wait = self._settings.wait_replicas
        return await self._one(slot, self._commands.post(slot, post), wait_replicas=wait)

    async def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.protocol.ProtocolStore.read`."""
        opening = await self._one(slot, self._reads.read(slot, offset, limit))
        if opening.complete:
            return opening.page
        return opening.joined(await self._link.call_many(self._reads.read_on(slot, opening)))

    async def heads(self, slots: Sequence[Slot]) -> list[Head | Exception]:
        """See :meth:`celery_streams.protocol.ProtocolStore.heads`."""
        calls = [self._reads.head(slot) for slot in slots]
        results = await self._link.call_many(calls)
        for place, (slot, result) in enumerate(zip(slots, results, strict=True)):
            if isinstance(result, StreamDeleted):
                results[place] = await self._verdict(slot, result)
        return results

    async def keys(self, slots: Sequence[Slot]) -> list[list[str]]:
        """See :meth:`celery_streams.protocol.ProtocolStore.keys`."""
        return await self._all([self._commands.keys(slot) for slot in slots])

    async def recent(
        self, scope: Scope, limit: int, *, before: float | None = None
    ) -> list[tuple[Slot, float]]:
        """See :meth:`celery_streams.protocol.ProtocolStore.recent`."""
        index = StreamIndex(self._link, self._layout, self._settings)
        found = await index.recent(scope, limit, before=before)
        return [(each.slot, each.opened_at) for each in found]

    async def touch(self, slot: Slot, ttl: int) -> None:
        """See :meth:`celery_streams.protocol.ProtocolStore.touch`."""
        await self._all(self._commands.touch(slot, ttl))

    async def remove(self, slot: Slot) -> None:
        """See :meth:`celery_streams.protocol.ProtocolStore.remove`."""
        await self._cascade(slot, await self._one(slot, self._commands.remove(slot)))

    def feed(self) -> Feed:
        """See :meth:`celery_streams.protocol.ProtocolStore.feed`."""
        return RedisFeed(self._link, self._layout, self._settings)

    async def aclose(self) -> None:
        """Close the loop's connections."""
        await self._link.close()

    async def _create(
        self,
        slot: Slot,
        creation: Creation,
        identity: str,
        inherited: int = 0,
        copied: int = 0,
    ) -> tuple[bool, Head]:
        calls: list[Call[Any]] = [
            recording.record(self._layout, self._settings, slot),
            self._commands.create(slot, creation, identity, inherited, copied),
            self._reads.head(slot),
        ]
        recorded, created, head = await self._link.call_many(
            calls, wait_replicas=self._settings.wait_replicas
        )
        if isinstance(recorded, Exception):
            raise recorded
        if isinstance(created, Conflict):
            # Perhaps with what is left of a stream whose forks have expired.
            if not isinstance(head, StreamDeleted) or isinstance(
                await self._verdict(slot, head), StreamDeleted
            ):
                raise created
            return await RedisProtocolStore._create(
                self, slot, creation, identity, inherited, copied
            )
        if isinstance(created, Exception):
            raise created
        if isinstance(head, StreamNotFound):  # created with an expiry that has passed
            head = Head(slot, len(creation.chunks), content_type=creation.content_type or "")
        if isinstance(head, Exception):
            raise head
        if created and recording.sample_due():
            await self._tidy(slot.scope)
        return created, head

    async def _tidy(self, scope: Scope) -> None:
        """Look for index entries of streams that exist no longer."""
        found = await self._link.call(recording.sample(self._layout, scope))
        calls = [recording.exists(self._layout, slot) for slot, _ in found]
        alive = await self._link.call_many(calls)
        if dead := recording.dead(found, alive):
            await self._link.call(recording.drop(self._layout, scope, dead))

    async def _fork(
        self, slot: Slot, creation: Creation, fork: ForkPoint, identity: str
    ) -> tuple[bool, Head]:
        """Announce the fork, copy what it inherits, create it."""
        source = await self._one(
            fork.source,
            self._commands.refer(fork.source, fork.offset, member(slot, identity)),
        )
        if creation.content_type not in (None, source.content_type):
            raise Conflict(f"{fork.source} is a stream of {source.content_type}")
        end, last = source.offset, None
        if fork.sub_offset:
            end, last = await self._refined(fork, source.offset, source.content_type)
        at = copied = 0
        while at < end:
            try:
                page = await self.read(fork.source, at)
            except OffsetGone as gone:
                if copied:  # trimmed meanwhile: no gap in the fork
                    await self._unstage(slot, identity)
                at, copied = gone.first, 0
                continue
            if not page.entries or page.head is None or page.head.identity != source.identity:
                raise StreamNotFound(f"{fork.source} was deleted while it was being forked")
            kept = [_clipped(e, end, last, source.content_type) for e in page.entries]
            staged = [entry for entry in kept if entry.count > 0]
            if staged:
                copied = await self._stage(slot, identity, staged, source.content_type)
            at = page.entries[-1].end
        known = _completed(creation, source.content_type, source.lifetime)
        return await self._create(slot, known, identity, end, copied)

    async def _stage(
        self, slot: Slot, identity: str, entries: Sequence[Entry], content_type: str
    ) -> int:
        """Copy entries to where :meth:`_create` finds them; how many there are now."""
        return await self._link.call(self._commands.stage(slot, identity, entries))

    async def _unstage(self, slot: Slot, identity: str) -> None:
        """Throw away what :meth:`_stage` has copied."""
        await self._link.call(self._commands.unstage(slot, identity))

    async def _refined(
        self, fork: ForkPoint, offset: int, content_type: str
    ) -> tuple[int, bytes | None]:
        """Where a fork with a sub-offset ends, and its last chunk if that is cut short."""
        page = await self.read(fork.source, offset, limit=1)
        if not page.entries:
            raise BadFork(f"{fork.source} has nothing after {offset} to fork into")
        entry = page.entries[0]
        chunks = unframe(entry.payload, content_type)[offset - entry.start :]
        left = fork.sub_offset
        for place, chunk in enumerate(chunks, 1):
            size = 1 if content_type == JSON else len(chunk)
            if left <= size:
                return offset + place, chunk[:left] if left < size else None
            left -= size
        raise BadFork("Stream-Fork-Sub-Offset goes past the next boundary of the source's data")

    async def _release(self, source: Slot, members: Sequence[str]) -> bool:
        """Forget forks; answers whether that was the end of the source."""
        gone = await self._link.call(self._commands.release(source, members))
        await self._cascade(source, gone)
        return gone is not None

    async def _cascade(self, slot: Slot, gone: Gone | None) -> None:
        """What is gone lets go of what it was forked from, and so on up the chain."""
        while gone is not None and gone.source is not None:
            source, fork = gone.source, member(slot, gone.identity)
            gone = await self._link.call(self._commands.release(source, [fork]))
            slot = source

    async def _verdict(self, slot: Slot, deleted: StreamDeleted) -> StreamError:
        """Whether a deleted stream still has forks; if not, it is no more."""
        forks = await self._link.call(self._commands.forks(slot, _SAMPLE))
        alive = await self._all([self._commands.is_alive(fork) for fork in forks])
        dead = [fork for fork, lives in zip(forks, alive, strict=True) if not lives]
        if dead and await self._release(slot, dead):
            return StreamNotFound(f"there is no stream {slot}, or it has expired")
        return deleted

    async def _one(self, slot: Slot, call: Call[T], *, wait_replicas: int = 0) -> T:
        result = (await self._link.call_many([call], wait_replicas=wait_replicas))[0]
        if isinstance(result, StreamDeleted):
            raise await self._verdict(slot, result)
        if isinstance(result, Exception):
            raise result
        return result

    async def _all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        results = await self._link.call_many(calls)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results


def _completed(creation: Creation, content_type: str, lifetime: Lifetime) -> Creation:
    given = creation.lifetime != Lifetime()
    return replace(
        creation,
        content_type=creation.content_type or content_type,
        lifetime=creation.lifetime if given else lifetime,
    )


def _clipped(entry: Entry, end: int, last: bytes | None, content_type: str) -> Entry:
    """The part of ``entry`` before ``end``, whose last chunk is ``last`` if given."""
    if entry.end < end or (entry.end == end and last is None):
        return entry
    chunks = unframe(entry.payload, content_type)[: max(0, end - entry.start)]
    if last is not None and chunks:
        chunks[-1] = last
    return Entry(end, len(chunks), frame(chunks, content_type))
