"""The plain data that crosses rooms, and the two protocols other back ends implement.

:class:`Authority` is the control plane (it registers a stream and mints credentials),
:class:`Store` the data plane (it holds the chunks). Everything here is immutable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from celery_streams.slots import Slot

#: Content type of a stream whose chunks are JSON values (the default).
JSON = "application/json"

#: Where reading starts: a sequence number, a negative "last n", or the current end.
Offset = int | Literal["now"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a store needs to accept appends to one slot, until it expires.

    ``mint_id`` names this mint in logs; ``token`` is the secret; ``expires_at`` is Unix time
    in seconds on the local clock.
    """

    slot: Slot
    mint_id: str
    token: str = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who writes, as the store's fence sees it: one attempt of one writing run.

    ``generation`` orders the deliveries of a run that Celery itself orders (task replacement,
    then retry count). Two deliveries of one generation are told apart by ``redelivered``: a
    first delivery may claim a stream only where no attempt of its generation or a later one
    has written, so a zombie that wakes before its first write cannot fence its successor.

    What follows an ``@`` in ``attempt_id`` names the process that executes the attempt.
    """

    run_id: str
    attempt_id: str
    generation: int = 0
    redelivered: bool = False
    #: Milliseconds beyond ``orphan_timeout`` that a lost worker's message may take to come back.
    grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class Producer:
    """One writer: its own id, under its attempt. Its batches are numbered from 0."""

    producer_id: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive chunks of one producer, already framed (see :mod:`celery_streams.chunks`)."""

    seq: int
    payload: bytes = field(repr=False)
    count: int
    #: If given, the stream's content type must be this one.
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a batch is: its chunks have the sequence numbers ``offset`` to ``end - 1``.

    ``duplicate`` says that an earlier send of the same batch had been applied; ``epoch`` is
    the number of the attempt (from 1) on this stream.
    """

    offset: int
    end: int
    epoch: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored batch: chunks ``end - count`` to ``end - 1``."""

    end: int
    count: int
    payload: bytes = field(repr=False)

    @property
    def start(self) -> int:
        """Sequence number of the first chunk."""
        return self.end - self.count


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a stream: ``end`` is the sequence number the next chunk will get.

    ``closed`` is ``None`` while the stream is open, else how it ended: a Celery state such as
    ``"SUCCESS"``, ``"LOST"`` for a run whose worker vanished, or ``"CLOSED"`` for
    an explicit close. ``first`` is the oldest retained sequence number. ``epoch`` counts the
    attempts of the owning run that have written.

    ``identity`` tells a stream that a client created from one that had its name before.
    ``ttl`` (seconds) and ``expires_at`` (RFC 3339) are the lifetime such a stream was given.
    ``run_state`` is how the stream's run is doing: a Celery state, or ``"STALLED"`` when its
    worker gives no sign of life.
    """

    slot: Slot
    end: int
    closed: str | None = None
    content_type: str = JSON
    first: int = 0
    epoch: int = 0
    identity: str = ""
    ttl: int | None = None
    expires_at: str | None = None
    run_state: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in order, and the head as of the same moment (``None``: no such stream yet).

    ``run_state`` is what the head would say of the stream's run, if there is no head.
    """

    entries: Sequence[Entry]
    head: Head | None
    run_state: str | None = field(default=None, compare=False)


@runtime_checkable
class Authority(Protocol):
    """The control plane. Implementations must be safe to call from several threads."""

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """Register ``slot`` on its run or session and mint write credentials for it.

        Raises:
            RunFinished: the run has ended (or was revoked).
            StoreUnavailable: the control plane cannot be reached.
        """
        ...

    def revoke(self, slot: Slot) -> int:
        """Withdraw every credential minted for ``slot``; returns how many there were."""
        ...


@runtime_checkable
class Store(Protocol):
    """The data plane, as the worker uses it. Safe to call from several threads."""

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """Append one batch atomically; sending the same batch again applies it once.

        Raises:
            CredentialsRejected, StreamFenced, StreamClosed, ChunksLost, StoreUnavailable.
        """
        ...

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """Append to several streams in as few round trips as the server allows.

        Answers in order; one stream's failure is returned in its place, never raised.
        """
        ...

    def read(self, slot: Slot, offset: int, *, limit: int = 1000) -> Page:
        """At most ``limit`` entries holding chunks from ``offset`` on. Never blocks.

        Raises:
            OffsetGone: ``offset`` lies before the oldest retained chunk.
        """
        ...

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        """Pages from ``offset`` on, then live; ends after the page that reaches the end.

        Yields an empty page whenever ``idle`` seconds pass without a chunk, so that the
        caller can check its own deadline.
        """
        ...

    def head(self, slot: Slot) -> Head:
        """The stream's state. Raises :class:`StreamNotFound` if there is no such stream."""
        ...

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        """End the stream for good; closing a closed stream changes nothing.

        Raises:
            CredentialsRejected, StreamFenced, StreamNotFound, StoreUnavailable.
        """
        ...

    def delete(self, slot: Slot) -> bool:
        """Remove the stream and its chunks; ``False`` if there was none."""
        ...


@dataclass(frozen=True, slots=True)
class Append:
    """The arguments of one :meth:`Store.append`, for :meth:`Store.append_many`."""

    slot: Slot
    batch: Batch
    producer: Producer
    credentials: Credentials


#: Told what has become of appends, each by its place among those that were submitted together.
Answer = Callable[[Sequence[tuple[int, Appended | Exception]]], None]


@runtime_checkable
class PipelinedStore(Store, Protocol):
    """A store that takes a producer's next batch before it has answered for the last one.

    Optional: it is for stores whose round trips are long. Others need only :class:`Store`.
    """

    #: Batches of one producer that may be under way at once.
    max_in_flight: int

    def submit(self, appends: Sequence[Append], answer: Answer) -> None:
        """Take appends, without waiting for anything; ``answer`` is called from any thread.

        Each append is answered for exactly once, and those of one producer in the order in which
        they were submitted. When one has failed, so have those of its producer that were
        submitted before ``answer`` was told of it: none of them may be applied without it. They
        are submitted again, from the first that failed on, and those that were applied after all
        are answered as duplicates.
        """
        ...


@runtime_checkable
class AsyncStore(Protocol):
    """The data plane, as event loops use it: reading only needs these."""

    async def read(self, slot: Slot, offset: int, *, limit: int = 1000) -> Page:
        """See :meth:`Store.read`."""
        ...

    def follow(self, slot: Slot, offset: int, *, idle: float) -> AsyncIterator[Page]:
        """See :meth:`Store.follow`."""
        ...

    async def head(self, slot: Slot) -> Head:
        """See :meth:`Store.head`."""
        ...
