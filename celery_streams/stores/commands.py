"""The Redis store's commands, built and their replies parsed without I/O.

Both :class:`~celery_streams.stores.redis.RedisStore` and its asyncio twin send these; what a
command means is written here and in the ``.lua`` file it names, nowhere else.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from celery_streams.contracts import JSON, Append, Appended, Attempt, Credentials, Head
from celery_streams.errors import (
    ChunksLost,
    ConfigurationError,
    CredentialsRejected,
    OffsetGone,
    StreamClosed,
    StreamError,
    StreamFenced,
    StreamNotFound,
)
from celery_streams.protocol import StreamDeleted
from celery_streams.redis.client import Call
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import Script, load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.entries import Entries
from celery_streams.stores.pages import FEW, PAGE_BYTES, SMALL, Opening

CLOSED = "CLOSED"


def _script(name: str) -> Script:
    return load_script("celery_streams.stores", name)


class Commands:
    """Builds the calls of one store configuration. Stateless, shareable."""

    def __init__(self, layout: Layout, settings: StreamsSettings) -> None:
        self.layout = layout
        self._retention = _milliseconds(settings.retention)
        self._max_chunks = settings.max_chunks
        self._lease = _milliseconds(settings.orphan_timeout)

    def append(self, append: Append) -> Call[Appended]:
        """See :meth:`celery_streams.contracts.Store.append`."""
        slot, batch, attempt = append.slot, append.batch, append.producer.attempt
        fence = self.layout.fence(slot, attempt.run_id)
        lease = self._lease + attempt.grace_ms if fence == self.layout.owner(slot) else 0
        return Call(
            _script("append"),
            (self.layout.meta(slot), self.layout.log(slot), fence),
            (
                append.credentials.token,
                self.layout.live(slot),
                append.producer.producer_id,
                batch.seq,
                batch.count,
                batch.payload,
                attempt.attempt_id,
                attempt.generation,
                int(attempt.redelivered),
                self._retention,
                self._max_chunks,
                lease,
                batch.content_type or "",
            ),
            partial(_appended, slot),
        )

    def read(self, slot: Slot, offset: int, limit: int) -> Call[Opening]:
        """See :meth:`celery_streams.contracts.Store.read`: the page, or how it begins."""
        return Call(
            _script("read"),
            (self.layout.meta(slot), self.layout.log(slot), self.layout.owner(slot)),
            (offset, limit, PAGE_BYTES, FEW, SMALL),
            partial(_opening, slot, offset, limit),
        )

    def read_on(self, slot: Slot, opening: Opening) -> tuple[Call[Any], Call[Any]]:
        """The rest of the page, and then whether it is of the same stream still."""
        first, last = opening.ids
        return (
            Call("XRANGE", (self.layout.log(slot),), (first, last, "COUNT", opening.wanted)),
            Call("HMGET", (self.layout.meta(slot),), ("id", "end")),
        )

    def head(self, slot: Slot) -> Call[Head]:
        """See :meth:`celery_streams.contracts.Store.head`."""
        return Call(
            _script("read"),
            (self.layout.meta(slot), self.layout.log(slot), self.layout.owner(slot)),
            (0, 0, 0, 0, 0),
            partial(_head, slot),
        )

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Call[Head]:
        """See :meth:`celery_streams.contracts.Store.close`."""
        return Call(
            _script("close"),
            (
                self.layout.meta(slot),
                self.layout.log(slot),
                self.layout.fence(slot, attempt.run_id),
                self.layout.owner(slot),
            ),
            (
                credentials.token,
                self.layout.live(slot),
                CLOSED,
                self._retention,
                attempt.attempt_id,
                attempt.generation,
                int(attempt.redelivered),
            ),
            partial(_closed, slot),
        )

    def delete(self, slot: Slot) -> Call[bool]:
        """See :meth:`celery_streams.contracts.Store.delete`."""
        return Call(
            _script("delete"),
            (self.layout.meta(slot), self.layout.log(slot), self.layout.keys(slot)),
            (slot.key, self.layout.live(slot)),
            bool,
        )


def parse_entry_id(text: str) -> tuple[int, int]:
    """The end and the count that an entry's id ``end-count`` says."""
    end, _, count = text.partition("-")
    return int(end), int(count)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _appended(slot: Slot, reply: list[Any]) -> Appended:
    match reply:
        case [b"OK" | b"DUPLICATE" as verdict, offset, end, epoch]:
            return Appended(offset, end, epoch, duplicate=verdict == b"DUPLICATE")
        case [b"GAP", expected]:
            raise _lost(slot, expected)
        case [reason, detail]:
            raise refusal(slot, reason.decode(), _text(detail))
    raise StreamError(f"unexpected reply to an append to {slot}: {reply!r}")


def _lost(slot: Slot, expected: int) -> ChunksLost:
    return ChunksLost(
        f"the store has lost chunks of {slot} that it had acknowledged (it expects batch "
        f"{expected} of this writer): it was probably flushed, or failed over to a replica that "
        "lagged behind. Set CELERY_STREAMS_WAIT_REPLICAS to wait for replicas"
    )


def refusal(slot: Slot, reason: str, detail: str) -> StreamError:
    """The error a script's refusal stands for."""
    match reason:
        case "CLOSED":
            return StreamClosed(
                f"{slot} has ended ({detail}); nothing can be appended to it any more"
            )
        case "FENCED":
            return StreamFenced(
                f"a later attempt of the run has taken over {slot} (attempt {detail} there); "
                "this attempt must stop"
            )
        case "REJECTED":
            return CredentialsRejected(f"the store refused the credentials for {slot}: {detail}")
        case "TYPE":
            return ConfigurationError(
                f"{slot} is a stream of {detail}, and this writer writes another content type; "
                "use another key"
            )
        case "MISSING":
            return _missing(slot)
    return StreamError(f"the store refused a command for {slot}: {reason} {detail}")


def _missing(slot: Slot, run_state: str | None = None) -> StreamNotFound:
    return StreamNotFound(f"there is no stream {slot}, or it has expired", run_state=run_state)


def _opening(slot: Slot, offset: int, limit: int, reply: list[Any]) -> Opening:
    if len(reply) == 1:
        return Opening(Entries([], []), None, limit, run_state=_run_state(slot, reply[0]))
    head = _head(slot, reply)
    entries = _entries(reply[10], reply[11])
    if offset < head.end and (not entries or entries[0].start > offset) and offset < head.first:
        raise OffsetGone(
            f"offset {offset} of {slot} is gone: the oldest chunk kept is {head.first}. Read from "
            "there, or raise CELERY_STREAMS_MAX_CHUNKS",
            first=head.first,
        )
    return Opening(entries, head, limit, reply[12])


def _head(slot: Slot, reply: list[Any]) -> Head:
    if len(reply) == 1:
        raise _missing(slot, _run_state(slot, reply[0]))
    end, closed, content_type, epoch, oldest = reply[:5]
    # Closing answers only so much; the rest is of interest to readers.
    identity, ttl, expires, deleted, run_state = reply[5:10] or (None,) * 5
    if deleted:
        raise StreamDeleted(f"{slot} was deleted; only its forks are left")
    first = end
    if oldest is not None:
        oldest_end, count = parse_entry_id(_text(oldest))
        first = oldest_end - count
    return Head(
        slot,
        end,
        closed=None if closed is None else _text(closed),
        content_type=JSON if content_type is None else _text(content_type),
        first=first,
        epoch=epoch,
        identity="" if identity is None else _text(identity),
        ttl=None if ttl is None else int(ttl),
        expires_at=None if expires is None else _text(expires),
        run_state=_run_state(slot, run_state),
    )


def _run_state(slot: Slot, state: bytes | None) -> str | None:
    return _text(state) if state is not None and slot.scope == "run" else None


def _closed(slot: Slot, reply: list[Any]) -> Head:
    match reply:
        case [b"OK", *head]:
            return _head(slot, head)
        case [reason, detail]:
            raise refusal(slot, reason.decode(), _text(detail))
    raise StreamError(f"unexpected reply to closing {slot}: {reply!r}")


def _entries(index: bytes, payloads: bytes) -> Entries:
    words = index.split()
    found, at = Entries(words[::2], []), 0
    for size in map(int, words[1::2]):
        found.payloads.append(payloads[at : at + size])
        at += size
    return found


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
