"""What an append does to a stream, decided without I/O: the S2 store's ``append.lua``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from celery_streams.contracts import Append, Appended, Attempt
from celery_streams.errors import (
    ChunksLost,
    ChunkTooLarge,
    ConfigurationError,
    StreamClosed,
    StreamError,
    StreamFenced,
)
from celery_streams.slots import Slot
from celery_streams.stores.s2.state import (
    MOST_IN_MEMORY,
    PAYLOAD_BYTES,
    Fence,
    Known,
    State,
    Written,
)

T = TypeVar("T")

#: Attempts of one generation that are remembered to have lost the fence.
_MOST_HELD = 32


@dataclass(frozen=True, slots=True)
class Added:
    """The append is due: what to answer once it is durable, and the state its record carries."""

    appended: Appended
    state: State


@dataclass(frozen=True, slots=True)
class Before:
    """The append was applied before the last one of its producer that is known of."""


Verdict = Added | Appended | Before | StreamError


@dataclass(frozen=True, slots=True)
class Due(Generic[T]):
    """A record is due that leaves the stream in ``state``, ending at ``end``; what to answer
    once it is durable."""

    answer: T
    state: State
    end: int
    count: int = 0
    payload: bytes = b""


def judge(fence: Fence | None, attempt: Attempt) -> Fence | None:
    """The fence once ``attempt`` has written; ``None`` if it may not.

    The rules are those of ``claim.lua``: an attempt that lost the fence never takes it again;
    a later generation takes it from an earlier one; within one, only a redelivered message.
    """
    if fence is None:
        return Fence(attempt.attempt_id, attempt.generation, 1)
    if fence.attempt == attempt.attempt_id:
        return fence
    if attempt.attempt_id in fence.held or attempt.generation < fence.generation:
        return None
    if attempt.generation == fence.generation:
        if not attempt.redelivered:
            return None
        held = (*fence.held, fence.attempt)[-_MOST_HELD:]
    else:
        held = ()
    return Fence(attempt.attempt_id, attempt.generation, fence.epoch + 1, held)


def decide(known: Known, append: Append) -> Verdict:
    """Judge one append: due, applied (where, if it was its producer's last), or refused (why)."""
    slot, batch, producer = append.slot, append.batch, append.producer
    state, attempt = known.state, producer.attempt
    last = state.written.get(producer.producer_id)
    if last is not None and batch.seq == last.seq:
        return Appended(last.offset, last.end, last.epoch, duplicate=True)
    if last is not None and batch.seq < last.seq:
        return Before()
    if state.closed is not None:
        return closed(slot, state.closed)
    if batch.content_type is not None and batch.content_type != state.content_type:
        return ConfigurationError(
            f"{slot} is a stream of {state.content_type}, and this writer writes another content "
            "type; use another key"
        )
    fence = judge(state.fences.get(attempt.run_id), attempt)
    if fence is None:
        return fenced(slot, state.fences[attempt.run_id])
    expected = 0 if last is None else last.seq + 1
    if batch.seq != expected:
        some_forgotten = state.partial or len(state.written) >= MOST_IN_MEMORY
        if last is None and some_forgotten and state.first > 0:
            return forgotten(slot)
        return ChunksLost(
            f"the store does not have chunks of {slot} that it had acknowledged (it expects batch "
            f"{expected} of this writer): the stream was deleted, or its retention is too short"
        )
    if len(batch.payload) > PAYLOAD_BYTES:
        return ChunkTooLarge(
            f"a batch for {slot} has {len(batch.payload)} bytes; S2 takes {PAYLOAD_BYTES} in a "
            "record. Lower CELERY_STREAMS_MAX_CHUNK_BYTES and CELERY_STREAMS_BATCH_BYTES",
            size=len(batch.payload),
            limit=PAYLOAD_BYTES,
        )
    stop = known.end + batch.count
    written = Written(batch.seq, known.end, stop, fence.epoch)
    return Added(
        Appended(known.end, stop, fence.epoch),
        replace(
            state,
            fences=newest(state.fences, attempt.run_id, fence, slot.owner),
            written=newest(state.written, producer.producer_id, written),
        ),
    )


def decide_end(known: Known, slot: Slot, attempt: Attempt, how: str) -> State | StreamError:
    """The state once ``attempt`` has closed the open stream, or why it may not."""
    fence = judge(known.state.fences.get(attempt.run_id), attempt)
    if fence is None:
        return fenced(slot, known.state.fences[attempt.run_id])
    fences = newest(known.state.fences, attempt.run_id, fence, slot.owner)
    return replace(known.state, closed=how, fences=fences)


def closed(slot: Slot, how: str) -> StreamClosed:
    """The error for a stream that has ended."""
    return StreamClosed(f"{slot} has ended ({how}); nothing can be appended to it any more")


def fenced(slot: Slot, fence: Fence) -> StreamFenced:
    """The error for an attempt that has been overtaken."""
    return StreamFenced(
        f"a later attempt of the run has taken over {slot} (attempt {fence.epoch} there); "
        "this attempt must stop"
    )


def forgotten(slot: Slot) -> StreamError:
    """The error for a writer whose last batch was trimmed, with what said that it was applied."""
    return StreamError(
        f"{slot} has had more writers since this one last wrote than are remembered "
        f"({MOST_IN_MEMORY}), and what it wrote has been trimmed: nobody can tell any more where "
        "it stands. Raise CELERY_STREAMS_MAX_CHUNKS, or give the writers more streams"
    )


def newest(known: dict[str, T], key: str, value: T, kept: str = "") -> dict[str, T]:
    """With ``key`` last; without the oldest (but for ``kept``) where there are too many."""
    newer = {each: old for each, old in known.items() if each != key}
    if len(newer) >= MOST_IN_MEMORY:
        del newer[next(each for each in newer if each != kept)]
    newer[key] = value
    return newer
