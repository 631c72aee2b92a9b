"""Where a reader stands and how long it may wait, decided without I/O."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

from celery_streams.chunks import unframe
from celery_streams.contracts import JSON, Head, Offset, Page
from celery_streams.errors import InvalidOffset, ReadTimeout, StoreUnavailable
from celery_streams.slots import Slot

Decode = Callable[[bytes, str], Any]

#: Largest offset Redis can seek to.
MAX_OFFSET = 2**53 - 1

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


def check_offset(offset: object) -> Offset:
    """Return ``offset`` if reading can start there.

    Raises:
        InvalidOffset: neither an integer of at most 53 bits nor ``"now"``.
    """
    if offset == "now":
        return "now"
    if isinstance(offset, int) and not isinstance(offset, bool) and abs(offset) <= MAX_OFFSET:
        return offset
    raise InvalidOffset(
        f"offset {offset!r} is neither an integer nor 'now'; give a sequence number (from 0), a "
        "negative number for the last n chunks, or 'now' for what comes from here on"
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
    stream ended, once its end was reached.
    """

    def __init__(
        self, slot: Slot, offset: Offset, timeout: float | None, recheck: float, decode: Decode
    ) -> None:
        self.slot = slot
        self.closed: str | None = None
        self.start: Offset = check_offset(offset)
        self.offset: int = offset if isinstance(offset, int) and offset > 0 else 0
        self.resolved = isinstance(self.start, int) and self.start >= 0
        self._timeout = timeout
        self._decode = decode
        self._failures = 0
        #: Seconds between two looks at the log: the timeout is a multiple of it.
        self.idle = recheck
        if timeout is not None:
            self.idle = timeout / math.ceil(timeout / recheck) if timeout > 0 else 0.0
        self._waiting_since = time.monotonic()

    def resolve(self, head: Head | None) -> None:
        """Turn ``"now"`` or a negative offset into a sequence number."""
        self.offset = start_at(self.start, head)
        self.resolved = True

    def resume_waiting(self) -> None:
        """The consumer is back (or a chunk came): the timeout starts anew."""
        self._waiting_since = time.monotonic()

    def unread(self, page: Page) -> list[bytes]:
        """The serialized chunks of a page from ``offset`` on."""
        self._failures = 0
        content_type = JSON if page.head is None else page.head.content_type
        chunks: list[bytes] = []
        for entry in page.entries:
            pieces = unframe(entry.payload, content_type)
            done = self.offset + len(chunks) - entry.start
            chunks += pieces[done:] if done > 0 else pieces
        return chunks

    def decoded(self, data: bytes, page: Page) -> Any:
        """One chunk as its reader sees it."""
        return self._decode(data, JSON if page.head is None else page.head.content_type)

    def reached_end(self, page: Page) -> None:
        """Take note of how the stream ended, if this page says so."""
        if page.head is not None and page.head.closed and self.offset >= page.head.end:
            self.closed = page.head.closed

    def ended_without_stream(self, page: Page, state: str | None) -> bool:
        """Whether the run is over and never had this stream: nothing will come."""
        if page.head is None and state is not None:
            self.closed = state
            return True
        return False

    def check_timeout(self) -> None:
        """Raise :class:`ReadTimeout` if no chunk came for the whole timeout."""
        if self._timeout is not None and self._waited() >= self._timeout:
            raise ReadTimeout(
                f"no chunk of {self.slot} for {self._timeout:g} s; the stream has not ended. "
                f"Resume with offset={self.offset}",
                offset=self.offset,
            )

    def pause_after(self, error: StoreUnavailable) -> float:
        """Seconds to wait before looking again; raises ``error`` when the timeout is over."""
        waited = self._waited()
        if self._timeout is not None and waited >= self._timeout:
            raise error
        self._failures += 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE)
        pause *= random.uniform(0.5, 1.0)
        return pause if self._timeout is None else min(pause, self._timeout - waited)

    def _waited(self) -> float:
        return time.monotonic() - self._waiting_since
