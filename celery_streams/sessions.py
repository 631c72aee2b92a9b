"""Sessions from outside a task: ``streams.session(id)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_streams.contracts import Head, Offset
from celery_streams.slots import Slot

if TYPE_CHECKING:
    from celery_streams.app import Streams
    from celery_streams.reading.reader import AsyncReader, Reader
    from celery_streams.writing.writer import Writer


class SessionStream:
    """One channel of a session."""

    def __init__(self, owner: Streams, slot: Slot) -> None:
        self._owner = owner
        self.slot = slot

    def read(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> Reader:
        """Iterate over the channel's chunks. See :meth:`celery_streams.Streams.read`."""
        return self._owner.open_reader(self.slot, offset, timeout)

    def aread(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> AsyncReader:
        """:meth:`read` for an event loop."""
        return self._owner.open_async_reader(self.slot, offset, timeout)

    def head(self) -> Head:
        """The channel's state. Raises :class:`StreamNotFound` before the first chunk."""
        return self._owner.runtime.store.head(self.slot)

    def writer(self) -> Writer:
        """A writer, best used as a context manager (it waits at the end)."""
        return self._owner.open_writer(self.slot)

    def append(self, chunk: Any, *, timeout: float | None = None) -> int:
        """Write one chunk, wait until it is durable, return its sequence number."""
        return self.writer().append(chunk, timeout=timeout)

    def close(self) -> Head:
        """End the channel for good."""
        return self._owner.close_stream(self.slot)


class Session:
    """A chat session: ``out`` is what its agents write, ``inbox`` what is sent to them."""

    def __init__(self, owner: Streams, session_id: str) -> None:
        self.session_id = session_id
        self.out = SessionStream(owner, Slot.session(session_id, "out"))
        self.inbox = SessionStream(owner, Slot.session(session_id, "in"))
