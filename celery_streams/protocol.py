"""What the Durable Streams protocol asks of a store: the operations behind its HTTP methods.

The protocol (https://github.com/durable-streams/durable-streams, PROTOCOL.md) has clients of its
own that create, append to, close, fork and delete streams. :class:`ProtocolStore` is what the
gateway needs for that, and each ``Refusal`` is one reason the protocol gives for saying no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from celery_streams.contracts import Entry, Head, Page
from celery_streams.errors import StreamError
from celery_streams.slots import Scope, Slot


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a stream lives: idle for ``ttl`` seconds, or until ``expires_at`` (RFC 3339).

    Neither: until it is deleted.
    """

    ttl: int | None = None
    expires_at: str | None = None


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a fork leaves its source: at ``offset`` (``None``: its end), or a little further.

    ``sub_offset`` counts messages of a JSON stream, bytes of any other (PROTOCOL 4.2).
    """

    source: Slot
    offset: int | None = None
    sub_offset: int = 0

    def __str__(self) -> str:
        return f"{self.source.scope}/{self.source.owner}/{self.source.key}"


@dataclass(frozen=True, slots=True)
class Creation:
    """A ``PUT``. ``content_type`` is ``None`` for a fork that takes its source's."""

    content_type: str | None
    chunks: Sequence[bytes] = field(default=(), repr=False)
    lifetime: Lifetime = Lifetime()
    closed: bool = False
    fork: ForkPoint | None = None


@dataclass(frozen=True, slots=True)
class ClientProducer:
    """The three ``Producer-*`` headers (PROTOCOL 5.2.1)."""

    producer_id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Post:
    """A ``POST``: chunks to append, or the end, or both in one step."""

    content_type: str | None
    chunks: Sequence[bytes] = field(default=(), repr=False)
    close: bool = False
    stream_seq: str | None = None
    producer: ClientProducer | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of a ``POST``. ``producer_seq`` is the highest the store has of the producer."""

    end: int
    closed: bool
    duplicate: bool = False
    producer_seq: int | None = None


class Refusal(StreamError):
    """The protocol's rules forbid the operation."""


class StreamDeleted(Refusal):
    """The stream was deleted; its forks live on (``410``)."""


class Conflict(Refusal):
    """The stream exists, and is not what the request says it is (``409``)."""


class SequenceConflict(Refusal):
    """``Stream-Seq`` does not come after the last one (``409``)."""


class BadFork(Refusal):
    """The fork point is not a position of the source (``400``)."""


class BadEpoch(Refusal):
    """A producer's new epoch must start at sequence number 0 (``400``)."""


class AlreadyClosed(Refusal):
    """The stream has ended at ``end`` (``409``)."""

    def __init__(self, message: str, *, end: int) -> None:
        super().__init__(message)
        self.end = end


class ProducerFenced(Refusal):
    """A later ``epoch`` of the producer has written (``403``)."""

    def __init__(self, message: str, *, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch


class ProducerGap(Refusal):
    """The producer skipped from ``expected`` to ``received`` (``409``)."""

    def __init__(self, message: str, *, expected: int, received: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.received = received


@dataclass(frozen=True, slots=True)
class Ended:
    """A live event: the stream was closed at ``end``, as ``state``."""

    end: int
    state: str


class Deleted:
    """A live event: the stream was deleted."""


@dataclass(frozen=True, slots=True)
class RunStateChanged:
    """A live event: how the stream's run is doing now, in its attempt number ``epoch``.

    A run that is over has ended its streams: that is :class:`Ended`.
    """

    epoch: int
    state: str


#: A live event; ``None`` says that something may have been missed: look at the log.
LiveEvent = Entry | Ended | Deleted | RunStateChanged | None
Deliver = Callable[[LiveEvent], None]


@runtime_checkable
class Feed(Protocol):
    """Live events of many streams over a constant number of connections."""

    async def listen(self, slot: Slot, deliver: Deliver) -> None:
        """Deliver events of ``slot`` that happen after this returns, until :meth:`ignore`.

        Raises:
            StoreUnavailable: not now; nothing is delivered.
        """
        ...

    async def ignore(self, slot: Slot) -> None:
        """Deliver nothing more of ``slot``."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class ProtocolStore(Protocol):
    """The store as the gateway uses it, on one event loop."""

    async def create(self, slot: Slot, creation: Creation) -> tuple[bool, Head]:
        """Create the stream, or find it as described (then the first answer is ``False``).

        Raises:
            Conflict, StreamDeleted, BadFork, StreamNotFound (the fork's source), RunFinished.
        """
        ...

    async def post(self, slot: Slot, post: Post) -> Posted:
        """Append and close, atomically and, for a producer, once.

        Raises:
            StreamNotFound, StreamDeleted, AlreadyClosed, Conflict, SequenceConflict,
            ProducerFenced, ProducerGap, BadEpoch.
        """
        ...

    async def read(self, slot: Slot, offset: int, *, limit: int = 500) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`; the head is ``None`` if none exists.

        Raises:
            OffsetGone, StreamDeleted.
        """
        ...

    async def heads(self, slots: Sequence[Slot]) -> list[Head | Exception]:
        """The streams' heads, in order; a failure is in its stream's place."""
        ...

    async def keys(self, slots: Sequence[Slot]) -> list[list[str]]:
        """The streams that each slot's run or session has opened, sorted."""
        ...

    async def recent(
        self, scope: Scope, limit: int, *, before: float | None = None
    ) -> list[tuple[Slot, float]]:
        """The streams opened last (before that Unix time), latest first, and when that was."""
        ...

    async def touch(self, slot: Slot, ttl: int) -> None:
        """Somebody reads a stream that lives as long as somebody does."""
        ...

    async def remove(self, slot: Slot) -> None:
        """Delete the stream, its data now and its name once no fork refers to it.

        Raises:
            StreamNotFound, StreamDeleted.
        """
        ...

    def feed(self) -> Feed:
        """A new feed of live events."""
        ...
