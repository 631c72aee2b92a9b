"""Making S2 streams: each begins with a record that says what it is."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_streams.chunks import frame
from celery_streams.contracts import Entry
from celery_streams.errors import StoreUnavailable, StreamError
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import stream_name
from celery_streams.stores.s2.client import Clients, translating
from celery_streams.stores.s2.state import (
    OVERHEAD,
    RECORD_BYTES,
    Known,
    State,
    end_of,
    headers_of,
    last_known,
    timestamp_of,
)

if TYPE_CHECKING:
    from s2_sdk import S2Stream, StreamConfig

#: Times in a row that others may open a stream while this process does.
_MOST_RACES = 5
#: Records of one append.
_MOST_RECORDS = 900


@dataclass(frozen=True, slots=True)
class Opening:
    """What a stream begins with, if it is not there yet: chunks from number ``first`` on.

    ``copied``: there may be something that was copied before.
    """

    content_type: str
    chunks: tuple[bytes, ...] = ()
    closed: str | None = None
    first: int = 0
    copied: bool = False


async def open_stream(
    clients: Clients, token: str, settings: StreamsSettings, slot: Slot, opening: Opening
) -> Known | None:
    """Make the stream; if it exists, the stream as it is.

    Raises:
        StoreUnavailable: S2 cannot be reached, or wants to be asked later.
    """
    from s2_sdk import AppendInput, Record, SeqNumMismatchError

    basin = clients.basin(token)
    name = stream_name(settings.prefix, slot)
    with translating(slot):
        await basin.ensure_stream(name, config=_config(settings, slot))
    stream = basin.stream(name)
    seq, first = 0, opening.first  # as a rule it is new
    for _ in range(_MOST_RACES):
        state = State(
            secrets.token_hex(6),
            opening.content_type,
            int(time.time()),
            closed=opening.closed,
            first=first,
            first_seq=seq,
        )
        count = len(opening.chunks)
        body = frame(opening.chunks, opening.content_type) if count else b""
        record = Record(body, headers_of(count, state, slot.owner), timestamp_of(first + count))
        with translating(slot):
            try:
                await stream.append(AppendInput([record], match_seq_num=seq))
            except SeqNumMismatchError:
                known, tail = await last_known(stream)
            else:
                return None
        if known is not None:
            return known
        if tail is None:
            raise StreamError(f"the S2 stream of {slot} was made by something else")
        # Everything has expired. Offsets go on where they were.
        seq, first = tail.seq_num, max(end_of(tail.timestamp), opening.first)
    raise StoreUnavailable(f"others opened {slot} {_MOST_RACES} times in a row")


async def copy_entries(stream: S2Stream, slot: Slot, known: Known, entries: Sequence[Entry]) -> int:
    """Append batches of another stream to one that nobody knows yet; returns how many."""
    from s2_sdk import AppendInput, Record

    tail, room = known.tail, RECORD_BYTES
    records: list[Record] = []

    async def send() -> None:
        nonlocal tail, records, room
        if records:
            with translating(slot):
                await stream.append(AppendInput(records, match_seq_num=tail))
        tail, records, room = tail + len(records), [], RECORD_BYTES

    for entry in entries:
        headers = headers_of(entry.count, known.state, slot.owner)
        room -= len(entry.payload) + OVERHEAD
        if room < 0 or len(records) >= _MOST_RECORDS:
            await send()
            room -= len(entry.payload) + OVERHEAD
        records.append(Record(entry.payload, headers, timestamp_of(entry.end)))
    await send()
    return len(entries)


def _config(settings: StreamsSettings, slot: Slot) -> StreamConfig:
    from s2_sdk import StreamConfig, Timestamping, TimestampingMode

    timestamping = Timestamping(mode=TimestampingMode.CLIENT_REQUIRE, uncapped=True)
    if slot.scope == "path":  # its lifetime is kept elsewhere
        return StreamConfig(retention_policy="infinite", timestamping=timestamping)
    kept = max(1, round(max(settings.retention, settings.credentials_ttl)))
    return StreamConfig(
        retention_policy=max(1, round(settings.retention)),
        timestamping=timestamping,
        delete_on_empty_min_age=kept,
    )
