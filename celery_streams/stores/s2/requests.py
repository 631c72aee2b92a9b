"""The requests of a writer for one stream: each once, none before S2 wants to hear of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from celery_streams.errors import StreamError
from celery_streams.slots import Slot
from celery_streams.stores.s2.client import Throttled, translating

if TYPE_CHECKING:
    from s2_sdk import AppendAck, AppendSession, ReadBatch, Record, S2Stream, SequencedRecord

OpenStream = Callable[[str], "S2Stream"]

#: Seconds to leave S2 alone after a 429 in a session, which does not say for how long.
_UNSAID_PAUSE = 1.0
#: Seconds that ending a session may take.
_PATIENCE = 1.0


class Overtaken(StreamError):
    """Somebody else appended first."""


class Requests:
    """What a writer asks S2. Nothing is repeated here: the flusher does that, who waits between.

    After a ``429`` with a pause, requests fail at once until it is over.
    """

    def __init__(
        self, slot: Slot, open_stream: OpenStream, received: Callable[[], None] = lambda: None
    ) -> None:
        self._slot = slot
        self._open = open_stream
        self._received = received
        self._rest_until = 0.0

    async def append(self, token: str, records: list[Record], tail: int | None = None) -> AppendAck:
        """Append; only if the stream ends at record ``tail``, where that is given.

        Raises:
            Overtaken: it does not.
        """
        from s2_sdk import AppendInput

        with self._asking():
            ack: AppendAck = await self._open(token).append(
                AppendInput(records, match_seq_num=tail)
            )
        return ack

    def session(self, token: str) -> Session:
        """A session of appends. For a running event loop."""
        return Session(self, token, self._open(token).append_session())

    async def last(self, token: str, count: int) -> list[SequencedRecord]:
        """At most the last ``count`` records."""
        from s2_sdk import TailOffset

        return await self._read(token, TailOffset(count), count)

    async def since(self, token: str, seq: int, count: int) -> list[SequencedRecord]:
        """Records from number ``seq`` on."""
        from s2_sdk import SeqNum

        return await self._read(token, SeqNum(seq), count)

    async def stamped(self, token: str, timestamp: int, count: int) -> list[SequencedRecord]:
        """Records from the first that is not before ``timestamp`` on."""
        from s2_sdk import Timestamp

        return await self._read(token, Timestamp(timestamp), count)

    async def _read(self, token: str, start: Any, count: int) -> list[SequencedRecord]:
        from s2_sdk import ReadLimit, ReadUnwrittenError

        with self._asking():
            try:
                batch: ReadBatch = await self._open(token).read(
                    start=start, limit=ReadLimit(count=count)
                )
            except ReadUnwrittenError:
                return []
        return batch.records

    @contextmanager
    def _asking(self, *, in_session: bool = False) -> Iterator[None]:
        from s2_sdk import S2ServerError, SeqNumMismatchError

        if (wait := self._rest_until - time.monotonic()) > 0:
            raise Throttled(f"S2 asked not to be asked for {self._slot} for {wait:.1f} s", wait)
        try:
            with translating(self._slot):
                try:
                    yield
                except SeqNumMismatchError:
                    raise Overtaken from None
                except S2ServerError as error:
                    if in_session and error.status_code == 429:
                        error._retry_after = error._retry_after or _UNSAID_PAUSE
                    raise
        except Throttled as error:
            self._rest_until = max(self._rest_until, time.monotonic() + error.pause)
            raise


class Session:
    """Appends one after the other, none waiting for the answer to the one before it.

    The server does them in order, and when it has refused one does none of those behind it: so
    each may name the tail that the one before it leaves.
    """

    def __init__(self, requests: Requests, token: str, session: AppendSession) -> None:
        self.token = token
        self._requests = requests
        self._session = session
        self.opened = time.monotonic()

    async def append(self, records: list[Record], tail: int) -> Awaitable[AppendAck]:
        """Send an append; what is returned waits for its answer.

        Raises (also later): what :meth:`Requests.append` does.
        """
        from s2_sdk import AppendInput

        with self._requests._asking(in_session=True):
            ticket = await self._session.submit(AppendInput(records, match_seq_num=tail))

        async def answered() -> AppendAck:
            with self._requests._asking(in_session=True):
                ack: AppendAck = await ticket
            self._requests._received()
            return ack

        return answered()

    async def close(self) -> None:
        """Give it up, after what it still has to say or a second."""
        with suppress(Exception):
            await asyncio.wait_for(self._session.close(), _PATIENCE)
