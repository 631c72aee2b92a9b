"""What a client's ``POST`` does to a stream, decided without I/O: the S2 store's ``post.lua``."""

from __future__ import annotations

from dataclasses import replace

from celery_streams.chunks import frame
from celery_streams.contracts import JSON
from celery_streams.errors import ChunkTooLarge
from celery_streams.protocol import (
    AlreadyClosed,
    BadEpoch,
    ClientProducer,
    Conflict,
    Post,
    Posted,
    ProducerFenced,
    ProducerGap,
    SequenceConflict,
)
from celery_streams.slots import Slot
from celery_streams.stores.commands import CLOSED
from celery_streams.stores.s2.planning import Due, newest
from celery_streams.stores.s2.state import PAYLOAD_BYTES, Known, Written


def producer_name(producer: ClientProducer | None) -> str:
    """What the state calls a client's producer; workers' names have no slash."""
    return "" if producer is None else f"/{producer.producer_id}"


def framed(slot: Slot, chunks: tuple[bytes, ...], content_type: str) -> bytes:
    """One record's payload.

    Raises:
        ChunkTooLarge: it does not fit one record, and S2 appends nothing larger at once.
    """
    payload = frame(chunks, content_type) if chunks else b""
    if len(payload) > PAYLOAD_BYTES:
        raise ChunkTooLarge(
            f"{len(payload)} bytes cannot be appended to {slot} at once: S2 takes {PAYLOAD_BYTES}",
            size=len(payload),
            limit=PAYLOAD_BYTES,
        )
    return payload


def decide_post(known: Known, slot: Slot, post: Post) -> Due[Posted] | Posted:
    """Judge a ``POST`` by the stream as it is: due, or applied before.

    Raises:
        AlreadyClosed, Conflict, SequenceConflict, ProducerFenced, ProducerGap, BadEpoch,
        ChunkTooLarge.
    """
    state, producer, name = known.state, post.producer, producer_name(post.producer)
    before = state.written.get(name)
    if producer and before and producer.epoch < before.epoch:
        raise ProducerFenced(
            f"a later epoch ({before.epoch}) of this producer has written to {slot}",
            epoch=before.epoch,
        )
    last = before.seq if producer and before and producer.epoch == before.epoch else -1
    if state.closed is not None:
        return _after_the_end(known, slot, post, max(last, 0))
    if post.chunks and _media(post.content_type or "") != _media(state.content_type):
        raise Conflict(f"{slot} is a stream of {state.content_type}")
    if producer:
        if before and producer.epoch > before.epoch and producer.seq != 0:
            raise BadEpoch("a new Producer-Epoch starts with Producer-Seq 0")
        if producer.seq <= last:
            return Posted(known.end, closed=False, duplicate=True, producer_seq=last)
        if producer.seq > last + 1:
            raise ProducerGap(
                f"{slot} expects Producer-Seq {last + 1} of this producer",
                expected=last + 1,
                received=producer.seq,
            )
    if not _after(post.stream_seq, state.stream_seq):
        raise SequenceConflict(f"Stream-Seq must come after {state.stream_seq!r}")
    return _due(known, slot, post, name)


def _due(known: Known, slot: Slot, post: Post, name: str) -> Due[Posted]:
    state, producer, count = known.state, post.producer, len(post.chunks)
    payload = framed(slot, tuple(post.chunks), post.content_type or JSON)
    end = known.end + count
    if producer:
        written = Written(producer.seq, known.end, end, producer.epoch)
        state = replace(state, written=newest(state.written, name, written))
    if post.stream_seq is not None:
        state = replace(state, stream_seq=post.stream_seq)
    if post.close:
        closer = (name, producer.epoch, producer.seq) if producer else None
        state = replace(state, closed=CLOSED, closer=closer)
    posted = Posted(end, post.close, producer_seq=producer.seq if producer else None)
    return Due(posted, state, end, count, payload)


def _after_the_end(known: Known, slot: Slot, post: Post, last: int) -> Posted:
    """Only the request that has closed it, sent again, is no mistake."""
    producer, closer = post.producer, known.state.closer
    if producer:
        again = closer == (producer_name(producer), producer.epoch, producer.seq)
    else:
        again = post.close and not post.chunks
    if not again:
        raise AlreadyClosed(
            f"{slot} has ended ({known.state.closed}); nothing can be appended to it",
            end=known.end,
        )
    return Posted(known.end, closed=True, duplicate=True, producer_seq=last if producer else None)


def _after(given: str | None, last: str | None) -> bool:
    """By bytes, as the protocol compares them."""
    if given is None or last is None:
        return True
    return given.encode("latin-1") > last.encode("latin-1")


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
