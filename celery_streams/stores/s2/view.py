"""What a process knows of one S2 stream it appends to, and the appends themselves."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from celery_streams.contracts import Append, Appended, Attempt, Head
from celery_streams.errors import (
    ChunksLost,
    CredentialsRejected,
    StoreUnavailable,
    StreamClosed,
    StreamError,
    StreamFenced,
    StreamNotFound,
)
from celery_streams.slots import Slot
from celery_streams.stores.s2.client import Throttled
from celery_streams.stores.s2.planning import Added, Due, decide, decide_end
from celery_streams.stores.s2.requests import OpenStream, Overtaken, Requests
from celery_streams.stores.s2.state import (
    LOOK_BACK,
    MOST_REMEMBERED,
    OVERHEAD,
    RECORD_BYTES,
    Known,
    State,
    entry_of,
    headers_of,
    knock_headers,
    knocked,
    known_at,
    known_from,
    timestamp_of,
)
from celery_streams.stores.s2.trimming import Mark, Marks

if TYPE_CHECKING:
    from s2_sdk import Record

T = TypeVar("T")

#: Times in a row that others may append first, before an append gives up for now: other streams
#: of the process wait for it.
_MOST_RACES = 24
#: Races lost in a row before a writer knocks.
_PATIENCE = 2
#: Seconds a writer leaves the stream to those who have knocked, at most.
_COURTESY = 0.1
#: Records that one append may have; one is left for a command.
_MOST_RECORDS = 900
#: Records looked at in one request, in search of a producer's last batch.
_SEARCHED = 500
#: Records the server keeps beyond ``max_chunks`` before it is told to remove them.
_UNTRIMMED = 16


@dataclass(slots=True)
class _Send:
    """One append request under way: its records, and what follows if it succeeds."""

    records: list[Record]
    known: Known
    answers: list[tuple[int, Appended]]
    marks: list[Mark]
    trimmed: int


class View:
    """One stream, as this process appends to it. For one event loop.

    **Every append is a compare-and-set**: it names the tail it was judged by, and the server
    refuses it if anybody was first. Then the last record says what has changed, the append is
    judged again, and goes out again. So nobody appends without having seen all that is there,
    which makes fences, closing and sequences exact without a server that knows of them.

    **A lost acknowledgement**: of a batch whose append had no answer it is remembered where it
    would be (``_tried``). When it comes again, the records from there on are searched for it
    first. If it arrives at the server later still, its tail is no longer the stream's.

    **Fairness**: whoever loses twice in a row knocks (see :meth:`_lost_race`).
    """

    def __init__(self, slot: Slot, open_stream: OpenStream, max_chunks: int) -> None:
        self._slot = slot
        self._requests = Requests(slot, open_stream)
        self._max_chunks = max_chunks
        self.lock = asyncio.Lock()
        self._known: Known | None = None
        self._current = False  # whether _known may be the tail
        self._tried: dict[str, int] = {}
        self._marks = Marks()
        self._name = secrets.token_bytes(6)
        self._others_wait = False

    async def append(self, appends: Sequence[Append], token: str) -> list[Appended | Exception]:
        """Append the batches in order, with one request where they fit one."""
        results: dict[int, Appended | Exception] = {}
        left = dict(enumerate(appends))
        async with self.lock:
            try:
                await self._append_all(left, token, results)
            except StreamNotFound as error:
                # As for a stream that was never opened: initialize makes it anew.
                gone = CredentialsRejected(f"the store has no such stream: {error}")
                results.update(dict.fromkeys(left, gone))
            except Exception as error:
                results.update(dict.fromkeys(left, error))
        return [results[place] for place in range(len(appends))]

    async def close(self, attempt: Attempt | None, how: str, token: str) -> Head:
        """End the stream, once; ``attempt`` ``None`` speaks for whoever runs the system."""

        def closing(known: Known) -> Due[Head] | Head:
            if known.state.closed is not None:
                return known.head(self._slot)
            if attempt is None:
                after: State | StreamError = replace(known.state, closed=how)
            else:
                after = decide_end(known, self._slot, attempt, how)
            if isinstance(after, StreamError):
                raise after
            return Due(Known(known.tail + 1, known.end, after).head(self._slot), after, known.end)

        return await self.change(closing, token)

    async def change(
        self, decide: Callable[[Known], Due[T] | T], token: str, producer: str = ""
    ) -> T:
        """Add the one record that is due, or none; answers what ``decide`` does of the stream
        as it is. ``producer`` is whose last batch it must know.
        """
        async with self.lock:
            for race in range(1, _MOST_RACES):
                known = await self._current_one(token)
                try:
                    due = decide(await self._knowing(known, producer, token))
                except StreamError:
                    # Nobody is refused, or told that nothing is to be done, from memory.
                    if (await self._refreshed(token)).tail != known.tail:
                        continue
                    raise
                if not isinstance(due, Due):
                    if (await self._refreshed(token)).tail != known.tail:
                        continue
                    return due
                record = self._record(due.count, due.payload, due.state, due.end)
                marks = [Mark(known.tail, known.end, due.end)] if due.count else []
                after = Known(known.tail + 1, due.end, due.state)
                if await self._sent(_Send([record], after, [], marks, 0), known.tail, token):
                    return due.answer
                await self._lost_race(race, token)
        raise self._too_busy()

    async def _knowing(self, known: Known, producer: str, token: str) -> Known:
        """With a producer's last batch, if the state may have left it out."""
        written = known.state.written
        if not producer or producer in written or len(written) < MOST_REMEMBERED:
            return known
        found = await self._search(producer, 0, known.tail, token)
        if found is None:
            return known
        written = {**written, producer: found.state.written[producer]}
        return replace(known, state=replace(known.state, written=written))

    async def _append_all(
        self, left: dict[int, Append], token: str, results: dict[int, Appended | Exception]
    ) -> None:
        races = 0
        self._answer_known(left, results)
        while left:
            known = await self._current_one(token)
            known = await self._with_producers(known, left.values(), token)
            send = await self._planned(known, left, token, results)
            for place in [place for place in left if place in results]:
                del left[place]
            if not send.records:
                continue
            for place, _ in send.answers:
                producer = left[place].producer.producer_id
                self._tried[producer] = min(self._tried.get(producer, known.tail), known.tail)
            if await self._sent(send, known.tail, token):
                for place, appended in send.answers:
                    results[place] = appended
                    self._tried.pop(left.pop(place).producer.producer_id, None)
                continue
            races += 1
            if races >= _MOST_RACES:
                raise self._too_busy()
            await self._lost_race(races, token)

    def _answer_known(
        self, left: dict[int, Append], results: dict[int, Appended | Exception]
    ) -> None:
        """What stays true whatever has been appended since: applied before, or ended."""
        if self._known is None:
            return
        for place, append in list(left.items()):
            verdict = decide(self._known, append)
            if isinstance(verdict, (Appended, StreamClosed)):
                results[place] = verdict
                del left[place]

    async def _planned(
        self,
        known: Known,
        left: dict[int, Append],
        token: str,
        results: dict[int, Appended | Exception],
    ) -> _Send:
        """Judge what is left, until a request is full."""
        before = known
        send = _Send([], known, [], [], 0)
        room = RECORD_BYTES
        for place, append in left.items():
            verdict = decide(send.known, append)
            if isinstance(verdict, Added):
                room -= len(append.batch.payload) + OVERHEAD
                if send.records and (room < 0 or len(send.records) >= _MOST_RECORDS):
                    break
                await self._add(send, append, verdict, token)
                send.answers.append((place, verdict.appended))
            elif isinstance(verdict, (StreamFenced, ChunksLost)) and send.known is before:
                # Whoever has no right to write learns that first, as from every store.
                if (await self._refreshed(token)).tail != before.tail:
                    break
                results[place] = verdict
            elif isinstance(verdict, Appended) or send.known is before:
                results[place] = verdict
            else:
                break  # judged again once what was planned before it is durable
        return send

    async def _add(self, send: _Send, append: Append, verdict: Added, token: str) -> None:
        from s2_sdk import CommandRecord

        batch, state = append.batch, verdict.state
        start, end = verdict.appended.offset, verdict.appended.end
        seq = send.known.tail
        keep_from = end - self._max_chunks
        if self._max_chunks and keep_from > state.first:
            first_seq, first = await self._first_kept(keep_from, (seq, start), send, token)
            if first_seq - max(self._marks.trimmed, send.trimmed) >= _UNTRIMMED and first_seq < seq:
                command = CommandRecord.trim(first_seq)
                command.timestamp = timestamp_of(start)
                send.records.append(command)
                send.trimmed = first_seq
                seq += 1
            state = replace(state, first=first, first_seq=first_seq)
        send.records.append(self._record(batch.count, batch.payload, state, end))
        send.marks.append(Mark(seq, start, end))
        send.known = Known(seq + 1, end, state)

    async def _first_kept(
        self, keep_from: int, new: tuple[int, int], send: _Send, token: str
    ) -> tuple[int, int]:
        """Record and start of the oldest batch that ends after ``keep_from``."""
        if new[1] <= keep_from:
            return new
        for seq, start, end in send.marks:
            if start <= keep_from < end:
                return seq, start
        if (mark := self._marks.holding(keep_from)) is not None:
            return mark.seq, mark.start
        for record in await self._requests.stamped(token, timestamp_of(keep_from + 1), 10):
            if (entry := entry_of(record)) is not None:
                return record.seq_num, entry.start
        return send.known.state.first_seq, send.known.state.first

    async def _sent(self, send: _Send, tail: int, token: str) -> bool:
        """Send; ``False`` if somebody else appended first."""
        self._current = False
        try:
            ack = await self._requests.append(token, send.records, tail)
        except (CredentialsRejected, Throttled):
            self._current = True  # nothing was applied
            raise
        except Overtaken:
            return False
        if ack.end.seq_num != send.known.tail:
            raise StreamError(f"S2 put an append to {self._slot} where it was not meant to be")
        self._known, self._current = send.known, True
        self._marks.trimmed = max(self._marks.trimmed, send.trimmed)
        if self._max_chunks:
            self._marks.add(send.marks)
        return True

    async def _lost_race(self, races: int, token: str) -> None:
        """Somebody else appended first. Knock, or let those in who have knocked.

        Whoever wins a race knows the tail without asking, and would win for ever. A knock is a
        record that anybody may add at any time: it makes the winner look, and wait.
        """
        await self._refreshed(token)
        if self._others_wait:
            await asyncio.sleep(random.uniform(0.5, 1.0) * _COURTESY)
            self._current = False
        elif races >= _PATIENCE:
            from s2_sdk import Record

            record = Record(b"", knock_headers(self._name), timestamp_of(0))
            await self._requests.append(token, [record])
            self._current = False

    async def _current_one(self, token: str) -> Known:
        """The stream as this process thinks it is, if it has reason to; else as it is."""
        if self._current and self._known is not None:
            return self._known
        return await self._refreshed(token)

    async def _refreshed(self, token: str) -> Known:
        """The stream as of its last record."""
        for count in LOOK_BACK:
            records = await self._requests.last(token, count)
            if (known := known_from(records)) is not None:
                who = knocked(records[-1])
                self._others_wait = who is not None and who != self._name
                return self._learn(known)
            if len(records) < count:
                break
        raise StreamNotFound(f"there is no stream {self._slot}, or it has expired")

    def _learn(self, known: Known) -> Known:
        """What was read, and what was known beyond it."""
        if self._known is not None:
            if self._known.state.identity != known.state.identity:
                self._tried.clear()
                self._marks.forget()
            elif self._known.tail != known.tail:
                self._marks.interrupt()
            known = replace(known, state=known.state.remembering(self._known.state))
        self._known, self._current = known, True
        return known

    async def _with_producers(self, known: Known, appends: Any, token: str) -> Known:
        """With what the log says of producers that the state does not tell all of."""
        for append in appends:
            producer, seq = append.producer.producer_id, append.batch.seq
            last = known.state.written.get(producer)
            tried = self._tried.get(producer)
            if last is not None and (tried is None or last.seq == seq):
                continue
            if tried is None and seq == 0:
                continue
            found = await self._search(producer, tried or 0, known.tail, token)
            if found is not None:
                written = {**known.state.written, producer: found.state.written[producer]}
                known = replace(known, state=replace(known.state, written=written))
                self._known = known
            elif tried is not None:
                self._tried[producer] = known.tail
        return known

    async def _search(self, producer: str, start: int, stop: int, token: str) -> Known | None:
        """The producer's last record, from the tail backwards."""
        while stop > start:
            low = max(start, stop - _SEARCHED)
            found = None
            at = low
            while at < stop:
                records = await self._requests.since(token, at, stop - at)
                for record in records:
                    known = known_at(record)
                    written = known.state.written if known and entry_of(record) else {}
                    if written and next(reversed(written)) == producer:
                        found = known
                if not records:
                    break
                at = records[-1].seq_num + 1
            if found is not None:
                return found
            stop = low
        return None

    def _record(self, count: int, body: bytes, state: State, end: int) -> Record:
        from s2_sdk import Record

        return Record(body, headers_of(count, state, self._slot.owner), timestamp_of(end))

    def _too_busy(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"others appended to {self._slot} first {_MOST_RACES} times in a row"
        )
