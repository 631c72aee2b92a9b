"""The index of streams, as far as those who open streams need it: an entry a stream.

It is written with the round trip that opens the stream, never with a chunk. An entry whose
stream has expired is dropped by whoever finds it (:class:`celery_streams.stores.index`), and by
:func:`sample`, so that an index nobody reads stays within a third of what it should be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

from celery_streams.redis.calls import Call
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Scope, Slot

#: One in so many openings looks at so many entries: it drops more than were added since.
SAMPLED_ONE_IN = 64
SAMPLE = 256
#: Seconds an entry may be older than its stream: it is written first.
GRACE = 60.0


def record(layout: Layout, settings: StreamsSettings, slot: Slot) -> Call[int]:
    """Note that ``slot`` has been opened. Send it with, and before, what opens the stream."""
    life = ""
    if slot.scope != "path":
        life = str(round(2000 * (settings.retention + settings.credentials_ttl)))
    key = layout.index(slot.scope)
    return Call(load_script("celery_streams.redis", "record"), (key,), (name(slot), life), int)


def sample_due() -> bool:
    """Whether the caller, who has just opened a stream, should look at a :func:`sample`."""
    return random.randrange(SAMPLED_ONE_IN) == 0


def sample(layout: Layout, scope: Scope) -> Call[list[tuple[Slot, float]]]:
    """Some entries, taken by chance, each with when it was made (Unix seconds)."""

    def parse(reply: list[bytes]) -> list[tuple[Slot, float]]:
        return entries(scope, reply)

    return Call("ZRANDMEMBER", (layout.index(scope),), (SAMPLE, "WITHSCORES"), parse)


def exists(layout: Layout, slot: Slot) -> Call[bool]:
    """Whether there is such a stream (a deleted one that forks refer to is none)."""
    return Call("HMGET", (layout.meta(slot),), ("end", "deleted"), _exists)


def drop(layout: Layout, scope: Scope, slots: Iterable[Slot]) -> Call[int]:
    """Drop entries."""
    return Call("ZREM", (layout.index(scope),), tuple(name(slot) for slot in slots), int)


def dead(found: Sequence[tuple[Slot, float]], alive: Sequence[bool | Exception]) -> list[Slot]:
    """Those of the entries ``found`` that can be dropped, given what :func:`exists` says."""
    old = time.time() - GRACE
    return [
        slot
        for (slot, recorded_at), exists in zip(found, alive, strict=True)
        if exists is False and recorded_at < old
    ]


def name(slot: Slot) -> str:
    """What the index calls a stream."""
    return f"{slot.owner}/{slot.key}"


def entries(scope: Scope, reply: Sequence[bytes]) -> list[tuple[Slot, float]]:
    """Members and scores of a reply, in its order."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [(slot_of(scope, member), float(score) / 1000) for member, score in pairs]


def slot_of(scope: Scope, member: bytes) -> Slot:
    """The stream that the index calls ``member``."""
    owner, _, key = member.decode().rpartition("/")
    return Slot(scope, owner, key)


def _exists(reply: list[bytes | None]) -> bool:
    return reply[0] is not None and reply[1] is None
