"""One S2 stream, as a process appends to it: judged, sent ahead of the answers, sent again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

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
from celery_streams.stores.s2.memory import Memory
from celery_streams.stores.s2.pipeline import Pipeline, Send, Waiting
from celery_streams.stores.s2.planning import Added, Before, Due, decide, decide_end
from celery_streams.stores.s2.requests import OpenStream, Overtaken, Requests
from celery_streams.stores.s2.state import (
    OVERHEAD,
    RECORD_BYTES,
    Known,
    State,
    headers_of,
    timestamp_of,
)
from celery_streams.stores.s2.trimming import Mark

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
#: Seconds before the end of its credentials at which an append that others have overtaken is
#: given back, to be sent again with newer ones.
_EXPIRING = 2.0
#: Records that one append may have; one is left for a command.
_MOST_RECORDS = 900
#: Records the server keeps beyond ``max_chunks`` before it is told to remove them.
_UNTRIMMED = 16


class View:
    """One stream, as this process appends to it. For one event loop.

    **Every append is a compare-and-set**: it names the tail it was judged by, and the server
    refuses it if anybody was first. Then the last record says what has changed, the append is
    judged again, and goes out again. So nobody appends without having seen all that is there,
    which makes fences, closing and sequences exact without a server that knows of them.

    **Ahead of the answers**: an append is judged by the stream as those in flight will leave it,
    and sent behind them (:class:`Pipeline`). If one is refused or lost, so are all behind it, and
    nothing that was judged by them is believed any more. Only what is plainly due goes ahead;
    whatever else there is to say is said when nothing is in flight.

    **Fairness**: whoever loses twice in a row knocks (see :meth:`_lose`).
    """

    def __init__(
        self,
        slot: Slot,
        open_stream: OpenStream,
        max_chunks: int,
        received: Callable[[], None] = lambda: None,
    ) -> None:
        self._slot = slot
        self._requests = Requests(slot, open_stream, received)
        self._max_chunks = max_chunks
        self._lock = asyncio.Lock()  # of whoever judges
        self._memory = Memory(slot, self._requests)
        self._pipeline = Pipeline(self._requests, self._durable, self._lost)
        self._queue: deque[Waiting] = deque()
        self._running = False
        self._races = 0  # lost in a row
        self._raced = False  # the last one was lost

    @property
    def busy(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._queue or self._pipeline.flying or self._lock.locked())

    def submit(self, append: Append, done: Callable[[Appended | Exception], None]) -> None:
        """Append a batch, behind those that were submitted before. ``done`` is called once."""
        self._queue.append(Waiting(append, append.credentials.token, done))
        self._wake()

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
        memory = self._memory
        async with self._lock:
            await self._pipeline.landed()
            for race in range(1, _MOST_RACES):
                known = await memory.current_one(token)
                try:
                    due = decide(await memory.with_client(known, producer, token))
                except StreamError:
                    # Nobody is refused, or told that nothing is to be done, from memory.
                    if await self._is_so(known, token):
                        raise
                    continue
                if not isinstance(due, Due):
                    if await self._is_so(known, token):
                        return due
                    continue
                memory.current = False
                record = self._record(due.count, due.payload, due.state, due.end)
                try:
                    await self._requests.append(token, [record], known.tail)
                except Overtaken:
                    await self._lose(race, token)
                    continue
                memory.acknowledged(Known(known.tail + 1, due.end, due.state))
                memory.tells_of(producer)
                if due.count and self._max_chunks:
                    memory.marks.add([Mark(known.tail, known.end, due.end)])
                return due.answer
        raise self._too_busy()

    async def shut(self) -> None:
        """Answer for everything, and end the session."""
        session = self._pipeline.give_up()
        self._fail(StoreUnavailable("the connection to S2 was closed meanwhile"))
        if session is not None:
            await session.close()

    # -- judging --------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._running:
            self._running = True
            self._pipeline.start(self._run())

    async def _run(self) -> None:
        """Send what waits, until nothing does."""
        try:
            while self._queue:
                async with self._lock:
                    await self._step()
        finally:
            self._running = False

    async def _step(self) -> None:
        """Answer or send the first that wait."""
        failures = self._pipeline.failures
        try:
            send = await self._planned()
        except Exception as error:
            await self._pipeline.landed()  # those before have their answers first
            if self._pipeline.failures == failures:
                self._fail(_as_for_writers(error))
            return
        if self._pipeline.failures != failures:
            return  # it was judged by what has failed meanwhile
        if send is not None:
            for _ in send.answers:
                self._queue.popleft()
            await self._pipeline.launch(send, send.answers[0][0].token)
        elif self._pipeline.flying:
            await self._pipeline.landed()

    async def _planned(self) -> Send | None:
        """The next request. ``None``: none yet, or the first has been answered."""
        if not self._queue:
            return None
        token, flying = self._queue[0].token, self._pipeline.flying
        if flying:
            if not self._pipeline.open_to(token):
                return None
            return await self._filled(flying[-1].known, token)
        if self._answer_known():
            return None
        if self._raced:
            self._raced = False
            if self._queue[0].append.credentials.expires_at - time.time() < _EXPIRING:
                self._fail(StoreUnavailable(f"others appended to {self._slot} first"))
                return None
            await self._lose(self._races, token)
        known = await self._memory.current_one(token)
        alike = [each.append for each in self._queue if each.token == token]
        known = await self._memory.with_producers(known, alike, token)
        return await self._filled(known, token)

    def _answer_known(self) -> bool:
        """Answer the first by what stays true whatever has been appended since.

        That it has ended is no such thing for whoever has not written to it: it may have been
        deleted, and made again.
        """
        known = self._memory.known
        if known is None:
            return False
        append = self._queue[0].append
        verdict = decide(known, append)
        has_written = append.producer.producer_id in known.state.written
        if isinstance(verdict, Appended) or (isinstance(verdict, StreamClosed) and has_written):
            self._queue.popleft().done(verdict)
            return True
        return False

    async def _filled(self, known: Known, token: str) -> Send | None:
        """A request with as much of what waits as it takes; or answer for the first."""
        send = Send(known.tail, known)
        room = RECORD_BYTES
        for waiting in list(self._queue):
            if waiting.token != token or self._memory.unsure(send.known, waiting.append):
                break
            verdict = decide(send.known, waiting.append)
            if isinstance(verdict, Added):
                room -= len(waiting.append.batch.payload) + OVERHEAD
                if send.records and (room < 0 or len(send.records) >= _MOST_RECORDS):
                    break
                await self._add(send, waiting, verdict, token)
                continue
            if not send.answers and not self._pipeline.flying:
                await self._refuse(waiting, verdict, known, token)
            break
        return send if send.answers else None

    async def _refuse(
        self, waiting: Waiting, verdict: Appended | Before | StreamError, known: Known, token: str
    ) -> None:
        """Answer for the first, which is not due."""
        if isinstance(verdict, Before):
            verdict = await self._memory.place_of(known, waiting.append, token)
        elif isinstance(verdict, (StreamClosed, StreamFenced, ChunksLost)) and (
            not await self._is_so(known, token)
        ):
            return  # nobody is refused from memory
        if self._queue and self._queue[0] is waiting:
            self._queue.popleft().done(verdict)

    async def _is_so(self, known: Known, token: str) -> bool:
        """Whether the stream is as it was thought to be, and the same; looks."""
        now = await self._memory.refreshed(token)
        return (now.tail, now.state.identity) == (known.tail, known.state.identity)

    async def _add(self, send: Send, waiting: Waiting, verdict: Added, token: str) -> None:
        from s2_sdk import CommandRecord

        batch, state = waiting.append.batch, verdict.state
        start, end = verdict.appended.offset, verdict.appended.end
        seq = send.known.tail
        keep_from = end - self._max_chunks
        if self._max_chunks and keep_from > state.first:
            sends = (*self._pipeline.flying, send)
            first_seq, first = seq, start
            if end - batch.count > keep_from:
                planned = [mark for each in sends for mark in each.marks]
                first_seq, first = await self._memory.first_kept(
                    keep_from, planned, send.known, token
                )
            trimmed = max(each.trimmed for each in sends)
            trimmed = max(trimmed, self._memory.marks.trimmed)
            if first_seq - trimmed >= _UNTRIMMED and first_seq < seq:
                command = CommandRecord.trim(first_seq)
                command.timestamp = timestamp_of(start)
                send.records.append(command)
                send.trimmed = first_seq
                seq += 1
            state = replace(state, first=first, first_seq=first_seq)
        send.records.append(self._record(batch.count, batch.payload, state, end))
        send.marks.append(Mark(seq, start, end))
        send.known = Known(seq + 1, end, state)
        send.answers.append((waiting, verdict.appended))

    # -- what becomes of it ---------------------------------------------------------------

    def _durable(self, send: Send) -> None:
        marks = self._memory.marks
        self._memory.acknowledged(send.known, send.producers)
        marks.trimmed = max(marks.trimmed, send.trimmed)
        if self._max_chunks:
            marks.add(send.marks)
        self._races = 0
        for waiting, appended in send.answers:
            waiting.done(appended)

    def _lost(self, sends: list[Send], error: Exception, certain: bool) -> None:
        if not certain:
            for send in sends:
                self._memory.doubt(send.tail, send.producers)
        waiting = [waiting for send in sends for waiting, _ in send.answers]
        self._queue.extendleft(reversed(waiting))
        if isinstance(error, Overtaken):
            self._races += 1
            if self._races < _MOST_RACES:
                self._raced = True
                self._wake()
                return
            self._races, error = 0, self._too_busy()
        self._fail(_as_for_writers(error), len(sends[0].answers))

    def _fail(self, error: Exception, count: int = 1) -> None:
        """Answer for all that wait: the first ``count`` have failed, the others with them."""
        token = self._queue[0].token if self._queue else ""
        transient = isinstance(error, (CredentialsRejected, StoreUnavailable))
        for place in range(len(self._queue)):
            waiting = self._queue.popleft()
            if place < count or (transient and waiting.token == token):
                waiting.done(error)
            else:
                waiting.done(StoreUnavailable(f"an append to {self._slot} before it: {error}"))

    async def _lose(self, races: int, token: str) -> None:
        """Somebody else appended first. Knock, or let those in who have knocked.

        Whoever wins a race knows the tail without asking, and would win for ever. A knock is a
        record that anybody may add at any time: it makes the winner look, and wait.
        """
        await self._memory.refreshed(token)
        if self._memory.others_wait:
            await asyncio.sleep(random.uniform(0.5, 1.0) * _COURTESY)
            self._memory.current = False
        elif races >= _PATIENCE:
            await self._memory.knock(token)

    def _record(self, count: int, body: bytes, state: State, end: int) -> Record:
        from s2_sdk import Record

        return Record(body, headers_of(count, state, self._slot.owner), timestamp_of(end))

    def _too_busy(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"others appended to {self._slot} first {_MOST_RACES} times in a row"
        )


def _as_for_writers(error: Exception) -> Exception:
    """A stream that is gone is as one that was never opened: initialize makes it anew."""
    if isinstance(error, StreamNotFound):
        return CredentialsRejected(f"the store has no such stream: {error}")
    return error
