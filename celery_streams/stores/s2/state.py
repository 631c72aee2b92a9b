"""What the records of an S2 stream say of it: :class:`State`, and how it is written down.

Each record carries, in one header, what whoever appends next must know: how the stream ended,
which attempts may write, what its recent producers wrote last. So the state of a stream is one
header of its last record, whatever its length. It is bounded: see :data:`STATE_BYTES`.

A record's *timestamp* is the sequence number after its last chunk (above :data:`BASE`), so the
server itself finds the record that holds a chunk, and the tail says how many chunks there are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_streams.contracts import JSON, Entry, Head
from celery_streams.errors import StreamError
from celery_streams.slots import Slot

if TYPE_CHECKING:
    from s2_sdk import S2Stream, StreamPosition

#: Added to offsets to make timestamps. The year 2109, in milliseconds: a server that reckons a
#: record's age from its timestamp then keeps it too long, rather than not at all.
BASE = 1 << 42

#: S2's limit for a record: body, headers, and 8 bytes.
RECORD_BYTES = 1024 * 1024
#: Largest state; where more would be needed, the writers that wrote longest ago are left out.
STATE_BYTES = 8 * 1024
#: What a record needs besides its body: the state, its header's name, the count, S2's own.
OVERHEAD = STATE_BYTES + 128
#: The largest payload of one record.
PAYLOAD_BYTES = RECORD_BYTES - OVERHEAD

#: Producers and foreign runs that a record tells of, at most.
MOST_REMEMBERED = 32
#: Producers that a process remembers of one stream, beyond what the records tell.
MOST_IN_MEMORY = 512

_COUNT, _STATE, _KNOCK = b"n", b"s", b"k"
#: What the last three of a state are where it does not say.
_RARE: tuple[Any, ...] = (None, None, False)

#: Records to look at, in turn, for the last one with a state: knocks may come after it.
LOOK_BACK = (1, 16, 256)


class Fence(NamedTuple):
    """The attempt of one writing run that may write.

    ``held`` are attempts of the same generation that lost it. Those of earlier generations
    need not be remembered: their generation tells.
    """

    attempt: str
    generation: int
    epoch: int
    held: tuple[str, ...] = ()


class Written(NamedTuple):
    """One producer's last batch."""

    seq: int
    offset: int
    end: int
    epoch: int


@dataclass(frozen=True, slots=True)
class State:
    """A stream as of one of its records.

    ``identity`` tells it from one that had its name before. ``opened`` is Unix time. ``first``
    is the oldest chunk that ``max_chunks`` keeps, in the record ``first_seq`` (the server may
    remove older ones later). ``fences`` (by run) and ``written`` (by producer) are in the order
    of writing.

    ``stream_seq`` and ``closer`` are the protocol's: the last ``Stream-Seq``, and which producer
    closed the stream, with which sequence number. ``partial``: this record, or one before it, had
    no room for all producers.
    """

    identity: str
    content_type: str = JSON
    opened: int = 0
    closed: str | None = None
    first: int = 0
    first_seq: int = 0
    fences: dict[str, Fence] = field(default_factory=dict)
    written: dict[str, Written] = field(default_factory=dict)
    stream_seq: str | None = None
    closer: tuple[str, int, int] | None = None
    partial: bool = False

    def encoded(self, owner: str) -> bytes:
        """One header's value, at most ``STATE_BYTES``; the owning run's fence is never left out."""
        most = MOST_REMEMBERED
        while True:
            fences = list(self.fences.items())[-most:]
            if owner in self.fences and all(run != owner for run, _ in fences):
                fences.insert(0, (owner, self.fences[owner]))
            partial = self.partial or len(self.written) > most
            data = json.dumps(
                [
                    self.identity,
                    self.content_type,
                    self.opened,
                    self.closed,
                    self.first,
                    self.first_seq,
                    [[run, *fence] for run, fence in fences],
                    [[who, *what] for who, what in list(self.written.items())[-most:]],
                    *self._rarely(partial),
                ],
                separators=(",", ":"),
                ensure_ascii=False,
            ).encode()
            if len(data) <= STATE_BYTES or most <= 1:
                return data
            most //= 2

    def _rarely(self, partial: bool) -> tuple[object, ...]:
        """What most records have not."""
        if partial:
            return self.stream_seq, self.closer, True
        return (self.stream_seq, self.closer) if self.stream_seq or self.closer else ()

    def remembering(self, earlier: State) -> State:
        """This state, and what an earlier one of the same stream knew beyond it."""
        if earlier.identity != self.identity:
            return self
        return replace(
            self,
            fences={**without(earlier.fences, self.fences), **self.fences},
            written={**without(earlier.written, self.written), **self.written},
        )


def without(known: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """What ``newer`` does not say, the latest of it."""
    rest = [(key, value) for key, value in known.items() if key not in newer]
    return dict(rest[-MOST_IN_MEMORY:])


@dataclass(frozen=True, slots=True)
class Known:
    """A stream up to its tail: the next record gets ``tail``, the next chunk ``end``."""

    tail: int
    end: int
    state: State

    def head(self, slot: Slot, first: int | None = None) -> Head:
        """What the store answers of it."""
        fence = self.state.fences.get(slot.owner) if slot.scope == "run" else None
        return Head(
            slot,
            self.end,
            closed=self.state.closed,
            content_type=self.state.content_type,
            first=max(self.state.first, first or 0),
            epoch=fence.epoch if fence else 0,
        )


def headers_of(count: int, state: State, owner: str) -> list[tuple[bytes, bytes]]:
    """The headers of a record of ``count`` chunks; 0 is a note (opened, closed)."""
    return [(_COUNT, b"%d" % count), (_STATE, state.encoded(owner))]


def timestamp_of(end: int) -> int:
    """The timestamp of a record whose last chunk is ``end - 1``; also where ``end - 1`` is."""
    return BASE + end


def end_of(timestamp: int) -> int:
    """The sequence number after the last chunk of the record."""
    return max(0, timestamp - BASE)


def entry_of(record: Any) -> Entry | None:
    """The batch in a record; ``None`` for a note or a command."""
    count = int(_header(record, _COUNT) or 0)
    return Entry(end_of(record.timestamp), count, record.body) if count else None


def known_at(record: Any) -> Known | None:
    """The stream as of this record; ``None`` if it is a command."""
    data = _header(record, _STATE)
    if data is None:
        return None
    try:
        (
            identity, content_type, opened, closed, first, first_seq, fences, written, *rare,
        ) = json.loads(data)  # fmt: skip
        stream_seq, closer, partial = tuple(rare) + _RARE[len(rare) :]
        state = State(
            identity,
            content_type,
            opened,
            closed,
            first,
            first_seq,
            {
                run: Fence(who, generation, epoch, tuple(held))
                for run, who, generation, epoch, held in fences
            },
            {who: Written(*what) for who, *what in written},
            stream_seq,
            None if closer is None else tuple(closer),
            partial,
        )
    except (ValueError, TypeError) as error:
        raise StreamError(
            f"record {record.seq_num} was not written by this version of celery-streams: {error}"
        ) from None
    return Known(record.seq_num + 1, end_of(record.timestamp), state)


def known_from(records: Sequence[Any]) -> Known | None:
    """The stream as of its last records; ``None`` if none of them says so."""
    for record in reversed(records):
        if (known := known_at(record)) is not None:
            return replace(known, tail=records[-1].seq_num + 1)
    return None


async def last_known(stream: S2Stream) -> tuple[Known | None, StreamPosition | None]:
    """The stream as of its last record; if it has none, where its tail is."""
    from s2_sdk import ReadUnwrittenError, TailOffset

    for count in LOOK_BACK:
        try:
            records = (await stream.read(start=TailOffset(count))).records
        except ReadUnwrittenError as error:
            return None, error.tail
        if (known := known_from(records)) is not None or len(records) < count:
            return known, None
    return None, None


def knock_headers(who: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of a record that only says that somebody waits for a turn."""
    return [(_KNOCK, who)]


def knocked(record: Any) -> bytes | None:
    """Who knocked with this record, if it is a knock."""
    return _header(record, _KNOCK)


def _header(record: Any, name: bytes) -> bytes | None:
    return next((bytes(value) for key, value in record.headers if key == name), None)
