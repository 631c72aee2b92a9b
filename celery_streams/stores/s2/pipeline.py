"""Append requests of one stream that are under way, several at once: :class:`Pipeline`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_streams.contracts import Append, Appended
from celery_streams.errors import CredentialsRejected, StoreUnavailable, StreamError
from celery_streams.stores.s2.client import Throttled
from celery_streams.stores.s2.requests import Requests, Session
from celery_streams.stores.s2.state import Known
from celery_streams.stores.s2.trimming import Mark

if TYPE_CHECKING:
    from s2_sdk import AppendAck, Record

#: Seconds of life of a session: S2 may look at its token only when it begins.
_LIFETIME = 10.0
#: Seconds without an append after which a session is ended.
_IDLE = 2.0


@dataclass(slots=True, eq=False)
class Waiting:
    """An append that has not been answered for."""

    append: Append
    token: str
    done: Callable[[Appended | Exception], None]


@dataclass(slots=True, eq=False)
class Send:
    """One request: its records, and what follows if it succeeds."""

    tail: int
    known: Known
    records: list[Record] = field(default_factory=list)
    answers: list[tuple[Waiting, Appended]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    trimmed: int = 0
    durable: bool = False

    @property
    def producers(self) -> Iterable[str]:
        """Whose batches it has."""
        return (waiting.append.producer.producer_id for waiting, _ in self.answers)


#: Told of requests that failed: the first with an error, the others with it; and whether it is
#: certain that none of them was applied.
Lost = Callable[[list[Send], Exception, bool], None]


class Pipeline:
    """Requests in flight, in order, in one session of S2. For one event loop.

    Each names the tail that the one before it leaves. S2 does a session's appends in order, and
    after one that it refuses none; so none is applied without those it was judged by. For the
    same reason there is one session at a time, a single request never goes beside a session,
    and when one has failed, all in flight have. The first request after a failure goes alone,
    by itself: S2 tells such a one more of what is wrong.
    """

    def __init__(self, requests: Requests, durable: Callable[[Send], None], lost: Lost) -> None:
        self._requests = requests
        self._durable = durable
        self._lost = lost
        self.flying: deque[Send] = deque()
        self.failures = 0  #: how often what was in flight, or planned, has failed
        self._landed = asyncio.Event()
        self._landed.set()
        self._alone = False
        self._session: Session | None = None
        self._used = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def landed(self) -> None:
        """Wait until nothing is in flight."""
        await self._landed.wait()

    def open_to(self, token: str) -> bool:
        """Whether a request may go behind those in flight."""
        session = self._session
        return session is not None and not self._alone and self._good(session, token)

    async def launch(self, send: Send, token: str) -> None:
        """Send a request. What becomes of it is told when it is known."""
        self.flying.append(send)
        self._landed.clear()
        self._used = time.monotonic()
        try:
            if self._alone:
                answer: Awaitable[AppendAck] = self._requests.append(token, send.records, send.tail)
            else:
                answer = await self._session_for(token).append(send.records, send.tail)
        except Exception as error:
            self._failed(send, error)
        else:
            self.start(self._answered(send, answer))

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside; the loop alone would let it be collected."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def give_up(self) -> Session | None:
        """Fail what is in flight, and what is being planned; the session is the caller's to end."""
        if self._idle is not None:
            self._idle.cancel()
        session, self._session = self._session, None
        self.failures += 1
        if self.flying:
            self._failed(self.flying[0], StoreUnavailable("closed"))
        return session

    async def _answered(self, send: Send, answer: Awaitable[AppendAck]) -> None:
        try:
            ack = await answer
            if ack.end.seq_num != send.known.tail:
                raise StreamError("S2 put an append where it was not meant to be")
        except asyncio.CancelledError:
            self._failed(send, StoreUnavailable("the connection to S2 was closed meanwhile"))
            raise
        except Exception as error:
            self._failed(send, error)
            return
        send.durable = True
        while self.flying and self.flying[0].durable:
            self._alone = False
            self._durable(self.flying.popleft())
        if not self.flying:
            self._landed.set()

    def _failed(self, send: Send, error: Exception) -> None:
        if send not in self.flying:
            return
        refused = isinstance(error, (CredentialsRejected, Throttled))
        sends, certain = list(self.flying), self._alone and refused
        self.flying.clear()
        self.failures += 1
        self._alone = True
        session, self._session = self._session, None
        if session is not None:
            self.start(session.close())
        self._lost(sends, error, certain)
        self._landed.set()

    def _good(self, session: Session, token: str) -> bool:
        return session.token == token and time.monotonic() - session.opened < _LIFETIME

    def _session_for(self, token: str) -> Session:
        """The session; another one only when nothing else is in flight."""
        session = self._session
        if session is not None:
            if len(self.flying) > 1 or self._good(session, token):
                return session
            self.start(session.close())
        self._session = self._requests.session(token)
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(_IDLE, self._rest)
        return self._session

    def _rest(self) -> None:
        """End the session if it has not been used for long."""
        self._idle = None
        session = self._session
        if session is None:
            return
        left = self._used + _IDLE - time.monotonic()
        if self.flying or left > 0:
            self._idle = asyncio.get_running_loop().call_later(max(left, _IDLE / 2), self._rest)
            return
        self._session = None
        self.start(session.close())
