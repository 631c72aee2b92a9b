"""What a process knows of one S2 stream it appends to, and how it looks when it does not."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace

from celery_streams.contracts import Append, Appended
from celery_streams.errors import StreamNotFound
from celery_streams.slots import Slot
from celery_streams.stores.s2.requests import Requests
from celery_streams.stores.s2.state import (
    LOOK_BACK,
    MOST_IN_MEMORY,
    Known,
    Written,
    entry_of,
    knock_headers,
    knocked,
    known_at,
    known_from,
    timestamp_of,
)
from celery_streams.stores.s2.trimming import Mark, Marks

#: Records looked at in one request, in search of a producer's batches.
_SEARCHED = 500


class Memory:
    """The stream as of the last record that this process has read, or has had acknowledged.

    **A lost acknowledgement**: of a batch whose append had no answer it is remembered where it
    would be (``doubt``). When it comes again, the records from there on are searched for its
    producer's, unless the last record tells of the producer. If it arrives at the server later
    still, its tail is no longer the stream's.
    """

    def __init__(self, slot: Slot, requests: Requests) -> None:
        self._slot = slot
        self._requests = requests
        self.known: Known | None = None
        self.current = False  #: whether ``known`` may be the tail
        self.others_wait = False  #: somebody else has knocked
        self.marks = Marks()
        self._name = secrets.token_bytes(6)
        self._told: set[str] = set()  # producers that the last record tells of, or a search has
        self._absent: set[str] = set()  # producers of which a search has found nothing
        self._tried: dict[str, int] = {}
        self._places: dict[str, dict[int, Written]] = {}  # of batches before a producer's last

    def acknowledged(self, known: Known, producers: Iterable[str] = ()) -> None:
        """An append of these producers is durable, and left the stream so."""
        self.known, self.current = known, True
        for producer in producers:
            self._tried.pop(producer, None)
            self._places.pop(producer, None)
            self._absent.discard(producer)

    def tells_of(self, client: str) -> None:
        """What is known says all of this client's producer."""
        self._told.add(client)
        self._absent.discard(client)

    def doubt(self, tail: int, producers: Iterable[str]) -> None:
        """It is not known what became of an append of these producers at record ``tail``."""
        self.current = False
        for producer in producers:
            self._tried[producer] = min(self._tried.get(producer, tail), tail)

    async def current_one(self, token: str) -> Known:
        """The stream as this process thinks it is, if it has reason to; else as it is."""
        if self.current and self.known is not None:
            return self.known
        return await self.refreshed(token)

    async def refreshed(self, token: str) -> Known:
        """The stream as of its last record."""
        for count in LOOK_BACK:
            records = await self._requests.last(token, count)
            if (known := known_from(records)) is not None:
                who = knocked(records[-1])
                self.others_wait = who is not None and who != self._name
                return self._learn(known)
            if len(records) < count:
                break
        raise StreamNotFound(f"there is no stream {self._slot}, or it has expired")

    async def knock(self, token: str) -> None:
        """Add a record that makes whoever appends now look, and wait."""
        from s2_sdk import Record

        record = Record(b"", knock_headers(self._name), timestamp_of(0))
        await self._requests.append(token, [record])
        self.current = False

    def unsure(self, known: Known, append: Append) -> bool:
        """Whether the log may say more of the append's producer than ``known`` does.

        It does of one that was told of, and has been forgotten since for those that wrote later.
        """
        producer, seq = append.producer.producer_id, append.batch.seq
        last = known.state.written.get(producer)
        if last is None:
            return producer not in self._absent and (seq != 0 or producer in self._tried)
        return producer in self._tried and producer not in self._told and last.seq < seq

    async def with_producers(self, known: Known, appends: Iterable[Append], token: str) -> Known:
        """With what the log says of producers that the state does not tell all of."""
        for append in appends:
            if not self.unsure(known, append):
                continue
            producer = append.producer.producer_id
            found = await self.search(producer, self._tried.get(producer, 0), known.tail, token)
            if found:
                written = {**known.state.written, producer: found[max(found)]}
                known = replace(known, state=replace(known.state, written=written))
                self.known = known
            else:
                self._absent.add(producer)
            if producer in self._tried:
                self._tried[producer] = known.tail
            self._told.add(producer)
        return known

    async def with_client(self, known: Known, producer: str, token: str) -> Known:
        """With the last batch of a client's producer, which may be another process's, too: what
        is remembered of it beyond the last record may be old.
        """
        written = known.state.written
        complete = not known.state.partial and len(written) < MOST_IN_MEMORY
        if not producer or complete or (producer in self._told and producer in written):
            return known
        found = await self.search(producer, 0, known.tail, token)
        if not found:
            return known
        last = max(found.values(), key=lambda each: each.end)  # its numbers begin anew at times
        return replace(known, state=replace(known.state, written={**written, producer: last}))

    async def place_of(self, known: Known, append: Append, token: str) -> Appended:
        """Where a batch before its producer's last is."""
        producer, batch = append.producer.producer_id, append.batch
        places = self._places.get(producer, {})
        if batch.seq not in places:
            places = await self.search(producer, 0, known.tail, token, upto=batch.seq)
            self._places[producer] = places
        if (found := places.get(batch.seq)) is not None:
            return Appended(found.offset, found.end, found.epoch, duplicate=True)
        end = known.state.first  # it has been trimmed
        last = known.state.written[producer]
        return Appended(max(0, end - batch.count), end, last.epoch, duplicate=True)

    async def search(
        self, producer: str, start: int, stop: int, token: str, *, upto: int | None = None
    ) -> dict[int, Written]:
        """A producer's records by sequence number, from the tail backwards: to its last one, or
        to that of batch ``upto``."""
        found: dict[int, Written] = {}
        while stop > start:
            low = at = max(start, stop - _SEARCHED)
            while at < stop:
                records = await self._requests.since(token, at, stop - at)
                for record in records:
                    known = known_at(record)
                    written = known.state.written if known and entry_of(record) else {}
                    if written and next(reversed(written)) == producer:
                        found[written[producer].seq] = written[producer]
                if not records:
                    break
                at = records[-1].seq_num + 1
            if found and (upto is None or min(found) <= upto):
                break
            stop = low
        return found

    async def first_kept(
        self, keep_from: int, planned: Iterable[Mark], known: Known, token: str
    ) -> tuple[int, int]:
        """Record and start of the oldest batch that ends after ``keep_from``. ``planned`` are
        batches that are not durable yet."""
        for seq, start, end in planned:
            if start <= keep_from < end:
                return seq, start
        if (mark := self.marks.holding(keep_from)) is not None:
            return mark.seq, mark.start
        for record in await self._requests.stamped(token, timestamp_of(keep_from + 1), 10):
            if (entry := entry_of(record)) is not None:
                return record.seq_num, entry.start
        return known.state.first_seq, known.state.first

    def _learn(self, known: Known) -> Known:
        """What was read, and what was known beyond it."""
        self._told = set(known.state.written)
        self._absent.clear()
        if self.known is not None:
            if self.known.state.identity != known.state.identity:
                self._tried.clear()
                self._places.clear()
                self.marks.forget()
            elif self.known.tail != known.tail:
                self.marks.interrupt()
            known = replace(known, state=known.state.remembering(self.known.state))
        self.known, self.current = known, True
        return known
