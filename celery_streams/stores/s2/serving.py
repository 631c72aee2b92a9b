"""The S2 store as the gateway uses it: chunks on S2, everything else about streams in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_streams.contracts import JSON, Entry, Head, Page
from celery_streams.errors import RunFinished, StoreUnavailable, StreamError, StreamNotFound
from celery_streams.protocol import Conflict, Creation, Feed, ForkPoint, Post, Posted
from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Scope, Slot
from celery_streams.stores.commands import CLOSED
from celery_streams.stores.cursor import PAGE_LIMIT
from celery_streams.stores.protocol_store import RedisProtocolStore
from celery_streams.stores.s2.asynchronous import AsyncS2Store
from celery_streams.stores.s2.feed import S2Feed
from celery_streams.stores.s2.opening import Opening, copy_entries, open_stream
from celery_streams.stores.s2.planning import Due
from celery_streams.stores.s2.posting import decide_post, framed, producer_name
from celery_streams.stores.s2.state import Known
from celery_streams.stores.s2.sweeping import Sweeper

if TYPE_CHECKING:
    from s2_sdk import S2Stream

#: Records a creation in Redis.
Record = Callable[[], Coroutine[Any, Any, tuple[bool, Head]]]

#: States of a run that has not ended.
_ALIVE = ("PENDING", "STARTED", "RETRY", "STALLED")


class S2ProtocolStore(RedisProtocolStore):
    """A :class:`~celery_streams.protocol.ProtocolStore` whose chunks are on S2.

    What a stream is (that there is one, its lifetime, its forks, its run) stays in Redis, and
    so does what the protocol says of that. What is in it (its chunks, its end, who wrote last)
    is on S2. A client's stream has a new S2 stream each time it is created, named by its
    identity: deleting one and creating another never meet.
    """

    def __init__(
        self, store: AsyncS2Store, link: AsyncRedisLink, layout: Layout, settings: StreamsSettings
    ) -> None:
        super().__init__(link, layout, settings)
        self._store = store
        self._sweeper = Sweeper(store, link, layout)

    async def post(self, slot: Slot, post: Post) -> Posted:
        """See :meth:`celery_streams.protocol.ProtocolStore.post`."""
        inner, known, _ = await self._resolved(slot)
        decide = partial(decide_post, slot=slot, post=post)
        name = producer_name(post.producer)
        posted = await self._store.view(inner).change(decide, self._store.token, name)
        if known is not None and known.ttl is not None:
            await self.touch(slot, known.ttl)
        return posted

    async def read(self, slot: Slot, offset: int, *, limit: int = PAGE_LIMIT) -> Page:
        """See :meth:`celery_streams.protocol.ProtocolStore.read`."""
        try:
            inner, known, run_state = await self._resolved(slot)
        except StreamNotFound as missing:
            return Page((), None, missing.run_state)
        page = await self._store.read(inner, offset, limit=limit)
        if page.head is None:
            return Page((), None, run_state)
        return Page(page.entries, _combined(slot, page.head, known))

    async def heads(self, slots: Sequence[Slot]) -> list[Head | Exception]:
        """See :meth:`celery_streams.protocol.ProtocolStore.heads`."""
        recorded = await super().heads(slots)
        return list(await asyncio.gather(*map(self._head, slots, recorded)))

    async def remove(self, slot: Slot) -> None:
        """See :meth:`celery_streams.protocol.ProtocolStore.remove`."""
        inner, known, _ = await self._resolved(slot)
        if known is not None:
            await super().remove(slot)
        deleted = await self._store.delete(inner)
        if known is None and not deleted:
            raise StreamNotFound(f"there is no stream {slot}, or it has expired")

    def feed(self) -> Feed:
        """See :meth:`celery_streams.protocol.ProtocolStore.feed`."""

        async def resolve(slot: Slot) -> S2Stream | None:
            inner, _, _ = await self._resolved(slot)
            return self._store.stream(inner)

        return S2Feed(super().feed(), resolve, self._store.clients.received)

    async def aclose(self) -> None:
        """Close the loop's connections."""
        await super().aclose()
        await self._store.aclose()

    # -- creating -------------------------------------------------------------------------

    async def _create(
        self,
        slot: Slot,
        creation: Creation,
        identity: str,
        inherited: int = 0,
        copied: int = 0,
    ) -> tuple[bool, Head]:
        content_type = creation.content_type or JSON
        framed(slot, tuple(creation.chunks), content_type)
        opening = Opening(
            content_type,
            tuple(creation.chunks),
            CLOSED if creation.closed else None,
            first=inherited,
            copied=copied > 0,
        )
        record = partial(
            super()._create, slot, replace(creation, chunks=()), identity, inherited, min(copied, 0)
        )
        if slot.scope == "path":
            created, head = await self._create_path(slot, identity, opening, record)
        else:
            created, head = await self._create_known(slot, opening, record)
        if created:
            end = inherited + len(creation.chunks)
            return True, replace(head, end=end, closed=opening.closed)
        now = await self._head(slot, head)
        return False, now if isinstance(now, Head) else head

    async def _tidy(self, scope: Scope) -> None:
        await super()._tidy(scope)
        if scope == "path":
            await self._sweeper.sweep()

    async def _create_path(
        self, slot: Slot, identity: str, opening: Opening, record: Record
    ) -> tuple[bool, Head]:
        """The S2 stream first: whoever finds the name taken finds the chunks, too."""
        inner = _inner(slot, identity)
        there = await self._mirror(slot)
        if not there:
            await self._make(inner, opening)
        try:
            created, head = await record()
        except StreamError as error:
            if not there and not isinstance(error, StoreUnavailable):
                await self._store.delete(inner)
            raise
        if created and there:  # what was there has expired meanwhile
            await self._make(inner, opening)
        elif not (created or there):  # somebody else was faster
            await self._store.delete(inner)
        return created, head

    async def _create_known(
        self, slot: Slot, opening: Opening, record: Record
    ) -> tuple[bool, Head]:
        """A run's or session's stream: registered first, so that the run's end finds it."""
        await self._mirror(slot)
        _, head = await record()
        known = await self._make(slot, opening)
        if known is not None and known.state.content_type != opening.content_type:
            raise Conflict(
                f"there is a stream {slot} already: its content type is {known.state.content_type}"
            )
        now = (await super().heads([slot]))[0]
        state = now.run_state if isinstance(now, Head) and slot.scope == "run" else None
        if known is None and state is not None and state not in _ALIVE:
            await self._store.view(slot).close(None, state, self._store.token)
            raise RunFinished(
                f"run {slot.owner} has finished ({state}); no stream of it can be opened",
                state=state,
            )
        return known is None, head

    async def _make(self, inner: Slot, opening: Opening) -> Known | None:
        """Make the S2 stream, or add to what was copied to it."""
        known = await open_stream(
            self._store.clients, self._store.token, self._settings, inner, opening
        )
        if known is None or not opening.copied or known.state.closed is not None:
            return known

        def adding(known: Known) -> Due[int] | int:
            end = known.end + len(opening.chunks)
            payload = framed(inner, opening.chunks, opening.content_type)
            state = replace(known.state, closed=opening.closed)
            return Due(end, state, end, len(opening.chunks), payload)

        if opening.chunks or opening.closed:
            await self._store.view(inner).change(adding, self._store.token)
        return None

    # -- forking --------------------------------------------------------------------------

    async def _fork(
        self, slot: Slot, creation: Creation, fork: ForkPoint, identity: str
    ) -> tuple[bool, Head]:
        await self._mirror(fork.source)
        return await super()._fork(slot, creation, fork, identity)

    async def _stage(
        self, slot: Slot, identity: str, entries: Sequence[Entry], content_type: str
    ) -> int:
        store = self._store
        inner = _inner(slot, identity)
        opening = Opening(content_type, first=entries[0].start)
        known = await open_stream(store.clients, store.token, self._settings, inner, opening)
        if known is None and (known := await store.tail(inner)) is None:
            raise StoreUnavailable(f"the copy for {slot} was removed while it was made")
        return await copy_entries(store.stream(inner), inner, known, entries)

    async def _unstage(self, slot: Slot, identity: str) -> None:
        await self._store.delete(_inner(slot, identity))

    # -- both together --------------------------------------------------------------------

    async def _resolved(self, slot: Slot) -> tuple[Slot, Head | None, str | None]:
        """The slot of the S2 stream, what Redis knows of it, and how its run is doing.

        Raises:
            StreamNotFound, StreamDeleted.
        """
        known = (await super().heads([slot]))[0]
        if isinstance(known, Head):
            return _inner(slot, known.identity), known, known.run_state
        if slot.scope != "path" and isinstance(known, StreamNotFound):
            return slot, None, known.run_state  # Redis may have lost what S2 has
        raise known

    async def _head(self, slot: Slot, recorded: Head | Exception) -> Head | Exception:
        known = recorded if isinstance(recorded, Head) else None
        lost = slot.scope != "path" and isinstance(recorded, StreamNotFound)
        if known is None and not lost:
            return recorded
        try:
            head = await self._store.head(_inner(slot, known.identity if known else ""))
        except StreamNotFound as error:
            told = recorded.run_state if isinstance(recorded, Head | StreamNotFound) else None
            return StreamNotFound(str(error), run_state=told)
        except StreamError as error:
            return error
        return _combined(slot, head, known)

    async def _mirror(self, slot: Slot) -> bool:
        """Tell Redis where the stream ends, and whether it has; answers if there is one."""
        known = (await super().heads([slot]))[0]
        if not isinstance(known, Head):
            return False
        head = await self._head(slot, known)
        if isinstance(head, Head):
            script = load_script("celery_streams.stores", "mirror")
            call: Call[int] = Call(
                script, (self._layout.meta(slot),), (head.end, head.closed or "")
            )
            await self._link.call(call)
        return True


def _inner(slot: Slot, identity: str) -> Slot:
    """What the S2 room calls a stream: a client's has its identity for a key."""
    return replace(slot, key=identity) if slot.scope == "path" else slot


def _combined(slot: Slot, head: Head, known: Head | None) -> Head:
    """What S2 says of a stream, and what Redis said of it a moment before.

    A run may have ended in between. Its streams on S2 say how; one that was closed early does not.
    """
    if known is None:
        return replace(head, slot=slot)
    over = head.closed if slot.scope == "run" and head.closed != CLOSED else None
    return replace(
        head,
        slot=slot,
        epoch=max(head.epoch, known.epoch),
        identity=known.identity,
        ttl=known.ttl,
        expires_at=known.expires_at,
        run_state=over or known.run_state,
    )
