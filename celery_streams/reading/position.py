"""Where a reader stands and how long it may wait, decided without I/O."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from pydantic_core import from_json

from celery_streams.chunks import decode as decode_chunk
from celery_streams.chunks import unframe
from celery_streams.contracts import JSON, Entry, Head, Offset, Page
from celery_streams.errors import (
    ChunksLost,
    ConfigurationError,
    InvalidChunk,
    InvalidOffset,
    OffsetGone,
    ReadTimeout,
    StoreUnavailable,
    StreamNotFound,
)
from celery_streams.slots import Slot

Decode = Callable[[bytes, str], Any]

#: Largest offset Redis can seek to.
MAX_OFFSET = 2**53 - 1

#: Seconds a reader without a timeout bears a store that cannot be reached.
OUTAGE_PATIENCE = 60.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
#: Clocks and rounding: a wait that is over by less counts as over.
_SLACK = 0.002


def check_offset(offset: object) -> Offset:
    """Return ``offset`` if reading can start there.

    Raises:
        InvalidOffset: neither an integer of at most 53 bits nor ``"now"``.
    """
    if isinstance(offset, str) and offset == "now":
        return "now"
    if isinstance(offset, int) and not isinstance(offset, bool) and abs(offset) <= MAX_OFFSET:
        return offset
    shown = ascii(offset)
    raise InvalidOffset(
        f"offset {shown if len(shown) <= 60 else shown[:57] + '...'} is neither an integer nor "
        "'now'; give a sequence number (from 0), a negative number for the last n chunks, or "
        "'now' for what comes from here on"
    )


def start_at(offset: Offset, head: Head | None) -> int:
    """The sequence number that ``offset`` means in a stream with this head."""
    if offset == "now":
        return 0 if head is None else head.end
    if offset >= 0:
        return offset
    return 0 if head is None else max(head.first, head.end + offset, 0)


class Position:
    """The state of one reader.

    ``offset`` is the sequence number of the next chunk: where to resume. ``closed`` is how the
    stream ended, once its end was reached. ``resolved`` says that ``offset`` is a sequence
    number already, and not yet ``"now"`` or relative to the end.
    """

    def __init__(
        self,
        slot: Slot,
        offset: Offset,
        timeout: float | None,
        recheck: float,
        decode: Decode,
        ends_with_run: bool = False,
    ) -> None:
        seconds: object = timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):
            raise ConfigurationError(
                f"timeout {timeout!r} is neither a number of seconds from 0 nor None (for ever)"
            )
        self.slot = slot
        self.closed: str | None = None
        self.start: Offset = check_offset(offset)
        self.relative = self.start == "now" or self.start < 0
        self.offset: int = 0 if self.relative else int(self.start)
        self.resolved = not self.relative
        self._timeout = timeout
        self._recheck = recheck
        self._decode = decode
        self._ends_with_run = ends_with_run
        self._seen = False  # the stream has existed
        self._begun = False  # a chunk was delivered
        self._looked_again = False
        self._failures = 0
        self._failing_since = 0.0
        self._waiting_since = time.monotonic()

    def resolve(self, head: Head | None) -> None:
        """Turn ``"now"`` or a negative offset into a sequence number."""
        self.offset = start_at(self.start, head)
        self.resolved = True

    def start_waiting(self) -> None:
        """The consumer wants the next chunk: from now on the timeout runs."""
        self._waiting_since = time.monotonic()
        self._looked_again = False

    @property
    def idle(self) -> float:
        """Seconds between two looks at the log. What is left of the timeout is a multiple."""
        if self._timeout is None:
            return self._recheck
        left = max(self._timeout - self._waited(), 0.0)
        even = left / max(1, math.ceil(left / self._recheck))
        # Not as short as the rest may be: it also holds after the next chunk.
        return max(even, min(self._recheck, self._timeout) / 4)

    def unread(self, entry: Entry, content_type: str) -> Iterable[Any]:
        """The decoded chunks of an entry from ``offset`` on.

        Raises:
            OffsetGone: chunks between ``offset`` and the entry are missing.
            InvalidChunk: (when it comes to it) a chunk that cannot be decoded.
        """
        if entry.start > self.offset:
            raise OffsetGone(
                f"chunks {self.offset} to {entry.start - 1} of {self.slot} are gone; the next "
                f"one there is has the offset {entry.start}",
                first=entry.start,
            )
        self._begun = True
        done = self.offset - entry.start
        if self._decode is decode_chunk and content_type == JSON and not done:
            # Compact JSON contains no raw newline: parse the batch in one go.
            with suppress(ValueError):
                chunks: list[Any] = from_json(b"[%b]" % entry.payload.replace(b"\n", b","))
                return chunks
        return self._one_by_one(unframe(entry.payload, content_type)[done:], content_type)

    def _one_by_one(self, pieces: list[bytes], content_type: str) -> Iterator[Any]:
        for piece in pieces:
            try:
                chunk = self._decode(piece, content_type)
            except ValueError as error:
                raise InvalidChunk(
                    f"chunk {self.offset} of {self.slot} cannot be decoded as {content_type}: "
                    f"{error}. Read on after it with offset={self.offset + 1}"
                ) from error
            yield chunk

    def took(self, page: Page) -> bool:
        """Take note of a page whose chunks were delivered; whether it brought nothing.

        Raises:
            StreamNotFound: the stream has existed, and does not any more.
            ChunksLost: it now ends before chunks that were delivered.
        """
        self._failures = 0
        head = page.head
        if head is not None:
            self._seen = True
            if self._begun and head.end < self.offset:
                raise ChunksLost(
                    f"the store has lost chunks of {self.slot} that were read already: it ends at "
                    f"{head.end}, before offset {self.offset}. It was flushed, failed over to a "
                    "replica that lagged behind, or the stream was deleted and made again. Read "
                    "it from offset 0, or from what you have stored"
                )
            if head.closed is not None and self.offset >= head.end:
                self.closed = head.closed
        elif self._seen:
            raise StreamNotFound(
                f"{self.slot} was deleted or has expired while it was read, at offset {self.offset}"
            )
        return not page.entries and self.closed is None

    def ended_with_run(self, state: str | None, *, missing: bool) -> bool:
        """Whether the run is over, and the stream will not say so itself: nothing will come.

        There never was this stream (``missing``, as of a look after the run's end); or its store
        is not told of runs' ends, and a look at the log since then has brought nothing.
        """
        if state and (missing or (self._ends_with_run and self._looked_again)):
            self.closed = state
            return True
        return False

    def check_timeout(self, state: str | None) -> None:
        """Raise :class:`ReadTimeout` if no chunk came for the whole timeout.

        If the run turns out to be over (``state``), the log is looked at once more before.
        """
        if state and not self._looked_again:
            self._looked_again = True
            return
        if self._timeout is not None and self._waited() + _SLACK >= self._timeout:
            what = (
                "the stream has not ended"
                if self._seen
                else "there is no such stream yet: its task has not written, or the name is wrong"
            )
            raise ReadTimeout(
                f"no chunk of {self.slot} for {self._timeout:g} s; {what}. "
                f"Resume with offset={self.offset}",
                offset=self.offset,
            )

    def pause_after(self, error: StoreUnavailable) -> float:
        """Seconds to wait before looking again; raises when the timeout is over."""
        now = time.monotonic()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        if self._timeout is None:
            left = OUTAGE_PATIENCE - (now - self._failing_since)
        else:
            left = self._timeout - self._waited()
        if left <= _SLACK:
            raise StoreUnavailable(
                f"gave up reading {self.slot}: {error}. Resume with offset={self.offset}"
            ) from error
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE)
        return min(pause * random.uniform(0.5, 1.0), left)

    def start_again(self, gone: OffsetGone) -> None:
        """After :class:`OffsetGone`: "the last n" moves on with the trim point, once it is known.

        Raises ``gone`` if the offset was the caller's own, or chunks were delivered already.
        """
        if not self.relative or self._begun:
            raise gone
        self.offset = max(self.offset, gone.first)

    def _waited(self) -> float:
        return time.monotonic() - self._waiting_since
