"""Following a stream, decided without I/O: where a follower stands and what comes next.

A follower catches up from the log, then lives on messages of the stream's channel. Messages
are hints: one that does not continue where the follower stands sends it back to the log, and
so does silence, so that a lost message costs a moment and never a chunk.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

from celery_streams.contracts import Entry, Head, Page
from celery_streams.errors import StreamNotFound
from celery_streams.protocol import Deleted, Ended, LiveEvent, RunStateChanged
from celery_streams.slots import Slot
from celery_streams.stores.commands import parse_entry_id

#: Entries read from the log at once.
PAGE_LIMIT = 500


class Next(Enum):
    """What the follower does after a step."""

    READ = auto()  #: read the log again, there is or may be more
    LISTEN = auto()  #: caught up: wait for a live message
    STOP = auto()  #: everything up to the end of the closed stream was delivered


def parse_live(message: bytes) -> LiveEvent:
    """What one message of a stream's channel says. The scripts publish them.

    A kind of message that is not known here, a later version's, reads as a hint to look at the
    log: so does every earlier version, and new kinds may be added.
    """
    kind, _, payload = message.partition(b"\n")
    if kind.startswith(b"e"):
        end, count = parse_entry_id(kind[1:].decode())
        return Entry(end, count, payload)
    if kind.startswith(b"c"):
        end_text, _, state = kind[1:].decode().partition(" ")
        return Ended(int(end_text), state)
    if kind.startswith(b"s"):
        epoch, _, state = kind[1:].decode().partition(" ")
        return RunStateChanged(int(epoch), state)
    if kind == b"d":
        return Deleted()
    return None


class Cursor:
    """A follower's position: feed it pages of the log and live messages.

    ``offset`` is the sequence number of the next chunk to deliver.
    """

    def __init__(self, slot: Slot, offset: int) -> None:
        self.slot = slot
        self.offset = offset
        self.head: Head | None = None

    def from_log(self, page: Page) -> tuple[Page, Next]:
        """Take a page that was read at ``offset``."""
        if page.head is None and self.head is not None:
            raise self._gone()
        self.head = page.head
        if page.entries:
            self.offset = max(self.offset, page.entries[-1].end)
        return page, self._next()

    def from_live(self, message: bytes) -> tuple[Page | None, Next]:
        """Take one message of the channel; the page is ``None`` if it brought nothing."""
        if self.head is None or not message:
            return None, Next.READ
        match parse_live(message):
            case Entry() as entry:
                if entry.end <= self.offset:
                    return None, Next.LISTEN
                if entry.start != self.offset:
                    return None, Next.READ
                self.offset = entry.end
                self.head = replace(self.head, end=entry.end)
                return Page((entry,), self.head), Next.LISTEN
            case Ended(end, state):
                if end != self.offset:
                    return None, Next.READ
                self.head = replace(self.head, closed=state)
                return Page((), self.head), Next.STOP
            case RunStateChanged():
                return None, Next.LISTEN
            case Deleted():
                raise self._gone()
        return None, Next.READ

    def _gone(self) -> StreamNotFound:
        return StreamNotFound(f"{self.slot} was deleted or has expired while it was followed")

    def _next(self) -> Next:
        if self.head is None or self.offset >= self.head.end:
            ended = self.head is not None and self.head.closed is not None
            return Next.STOP if ended else Next.LISTEN
        return Next.READ
