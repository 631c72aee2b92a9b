"""Live events of streams on S2: a read session each, all on the loop's few connections."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_streams.errors import StoreUnavailable, StreamError, StreamNotFound
from celery_streams.protocol import Deleted, Deliver, Ended, Feed, LiveEvent, RunStateChanged
from celery_streams.slots import Slot
from celery_streams.stores.s2.client import translating
from celery_streams.stores.s2.state import entry_of, known_at, last_known

if TYPE_CHECKING:
    from s2_sdk import S2Stream

logger = logging.getLogger("celery_streams.stores")

#: Seconds between looks for a stream that is not there yet, if nobody says that it is.
_LONGEST_LOOK = 1.0
_FIRST_LOOK = 0.02

#: Opens the S2 stream that a slot has now; ``None``: none that is known of.
Resolve = Callable[[Slot], Awaitable["S2Stream | None"]]


@dataclass(slots=True)
class _Listener:
    """One stream that is listened to."""

    deliver: Deliver
    live: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class S2Feed:
    """A :class:`~celery_streams.protocol.Feed`: entries and ends from S2's read sessions.

    That a stream was opened or deleted is heard on Redis (``control``); a session that breaks
    off goes on at the record where it was, so nothing is missed.
    """

    def __init__(
        self, control: Feed, resolve: Resolve, received: Callable[[], None] = lambda: None
    ) -> None:
        self._control = control
        self._received = received
        self._resolve = resolve
        self._listeners: dict[Slot, _Listener] = {}

    async def listen(self, slot: Slot, deliver: Deliver) -> None:
        """See :meth:`celery_streams.protocol.Feed.listen`."""
        listener = self._listeners[slot] = _Listener(deliver)

        def heard(event: LiveEvent) -> None:
            if isinstance(event, (Deleted, RunStateChanged)):
                deliver(event)
            elif not listener.live:
                deliver(None)  # opened, or its run is over without it
            listener.changed.set()

        try:
            await self._control.listen(slot, heard)
            started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            listener.task = asyncio.create_task(self._follow(slot, listener, started))
            await started
        except BaseException:
            await self._dismiss(slot)
            raise

    async def ignore(self, slot: Slot) -> None:
        """See :meth:`celery_streams.protocol.Feed.ignore`."""
        await self._dismiss(slot)
        await self._control.ignore(slot)

    @property
    def connections(self) -> int:
        """How many connections to Redis it has open."""
        return getattr(self._control, "connections", 0)

    async def aclose(self) -> None:
        """See :meth:`celery_streams.protocol.Feed.aclose`."""
        for slot in list(self._listeners):
            await self._dismiss(slot)
        await self._control.aclose()

    async def _dismiss(self, slot: Slot) -> None:
        listener = self._listeners.pop(slot, None)
        if listener is not None and listener.task is not None:
            listener.task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({listener.task})

    async def _follow(self, slot: Slot, listener: _Listener, started: asyncio.Future[None]) -> None:
        """Until the stream has ended: wait for it, read it live, and find it again."""
        pause = _FIRST_LOOK
        while True:
            listener.changed.clear()
            try:
                if await self._read_live(slot, listener, started):
                    await listener.changed.wait()  # another may get its name
                pause = _FIRST_LOOK
            except StoreUnavailable as error:
                if not started.done():
                    started.set_exception(error)
                    return
                logger.info("live events of %s are interrupted, trying again: %s", slot, error)
            except StreamNotFound:
                if not started.done():
                    started.set_result(None)
            except StreamError as error:
                if not started.done():
                    started.set_exception(error)
                else:
                    logger.warning("live events of %s have ended: %s", slot, error)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                    await listener.changed.wait()
            pause = min(2 * pause, _LONGEST_LOOK)

    async def _read_live(
        self, slot: Slot, listener: _Listener, started: asyncio.Future[None]
    ) -> bool:
        """Deliver what comes after now; ``True``: the stream has ended.

        Raises:
            StreamNotFound: there is none, or none any more.
        """
        from s2_sdk import SeqNum

        stream = await self._resolve(slot)
        if stream is None:
            raise StreamNotFound(f"there is no stream {slot} yet")
        with translating(slot):
            known, _ = await last_known(stream)
        if known is None:
            raise StreamNotFound(f"there is no stream {slot} yet")
        first = not started.done()
        session = stream.read_session(start=SeqNum(known.tail))
        if first:
            started.set_result(None)
        else:
            listener.deliver(None)  # what came before: the log has it
        listener.live = True
        if known.state.closed is not None:
            await session.close()
            return True
        try:
            with translating(slot):
                async for batch in session:
                    self._received()
                    if _deliver(batch.records, listener.deliver):
                        return True
            return False
        finally:
            listener.live = False
            await session.close()


def _deliver(records: list[Any], deliver: Deliver) -> bool:
    """Hand records on; whether they end the stream."""
    for record in records:
        if (entry := entry_of(record)) is not None:
            deliver(entry)
        known = known_at(record)
        if known is not None and known.state.closed is not None:
            deliver(Ended(known.end, known.state.closed))
            return True
    return False
