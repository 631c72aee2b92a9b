"""The requests of a writer for one stream: each once, none before S2 wants to hear of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_streams.errors import StreamError
from celery_streams.slots import Slot
from celery_streams.stores.s2.client import Throttled, translating

if TYPE_CHECKING:
    from s2_sdk import AppendAck, ReadBatch, Record, S2Stream, SequencedRecord

OpenStream = Callable[[str], "S2Stream"]


class Overtaken(StreamError):
    """Somebody else appended first."""


class Requests:
    """What a writer asks S2. Nothing is repeated here: the flusher does that, who waits between.

    After a ``429`` with a pause, requests fail at once until it is over.
    """

    def __init__(self, slot: Slot, open_stream: OpenStream) -> None:
        self._slot = slot
        self._open = open_stream
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
    def _asking(self) -> Iterator[None]:
        from s2_sdk import SeqNumMismatchError

        if (wait := self._rest_until - time.monotonic()) > 0:
            raise Throttled(f"S2 asked not to be asked for {self._slot} for {wait:.1f} s", wait)
        try:
            with translating(self._slot):
                try:
                    yield
                except SeqNumMismatchError:
                    raise Overtaken from None
        except Throttled as error:
            self._rest_until = max(self._rest_until, time.monotonic() + error.pause)
            raise
