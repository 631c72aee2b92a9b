"""One turn's chunks out of a session's ``out`` stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

from pydantic_core import from_json

from celery_streams.chat.chunks import MODELS
from celery_streams.chat.turns import SessionState
from celery_streams.chunks import unframe
from celery_streams.contracts import JSON
from celery_streams.gateway.chat.following import SessionFeed
from celery_streams.slots import Slot

_START = b'{"type":"start",'
_TAKEN = b'{"type":"data-inbox",'
_ENDS = (b'{"type":"finish"}', b'{"type":"finish",', b'{"type":"abort"}', b'{"type":"abort",')
_TYPE = b'{"type":"'

Look = Callable[[], Awaitable[SessionState]]


class Answer:
    """Follows one answer: the turn whose response message is ``reply``.

    ``offset`` is a position in ``out`` before the turn's first chunk. ``look`` asks for the
    session's state, and sees to a turn whose worker is lost.
    """

    def __init__(self, feed: SessionFeed, slot: Slot, reply: str, offset: int, look: Look) -> None:
        self._feed = feed
        self._slot = slot
        self._reply = reply
        self._offset = offset
        self._look = look
        self._begun = False
        self._doubtful = False
        #: The turn has ended, and everything of it was given.
        self.complete = False

    async def pieces(self) -> AsyncGenerator[list[bytes], None]:
        """The turn's chunks, as they come; an empty list is a sign of life.

        Raises:
            OffsetGone: the turn was trimmed.
        """
        while True:
            moved = False
            async with aclosing(self._feed.entries(self._slot, self._offset)) as entries:
                async for entry in entries:
                    if entry is None:
                        if await self._is_over():
                            self.complete = True
                            return
                        yield []
                        continue
                    self._doubtful = False
                    chunks = unframe(entry.payload, JSON)[max(0, self._offset - entry.start) :]
                    self._offset = entry.end
                    found, moved = await self._sort(chunks)
                    if found:
                        yield found
                    if moved or self.complete:
                        break
            if not moved:
                return  # complete, or the gateway drains

    async def _sort(self, chunks: Iterable[bytes]) -> tuple[list[bytes], bool]:
        """What of these belongs to the answer; and has it moved to another turn?"""
        found: list[bytes] = []
        for chunk in chunks:
            if not self._begun:
                if chunk.startswith(_TAKEN) and self._reply in from_json(chunk)["data"]["taken"]:
                    return found, await self._join_active()
                if not chunk.startswith(_START):
                    continue
                if from_json(chunk).get("messageId") != self._reply:
                    continue
                self._begun = True
            if is_for_pages(chunk):
                found.append(chunk)
            if chunk.startswith(_ENDS):
                self.complete = True
                break
        return found, False

    async def _join_active(self) -> bool:
        """Another turn answers this message: follow that, from its beginning."""
        active = (await self._look()).active
        if active is None:
            self.complete = True
            return False
        self._reply, self._offset = active.reply, active.start
        return True

    async def _is_over(self) -> bool:
        """Nothing has come for a while: is there anything to wait for?

        Asked twice: what has ended between the last read and this shows in the next read.
        """
        state = await self._look()
        if state.active is not None and state.active.reply == self._reply:
            return False
        if any(request.reply == self._reply for request in state.pending):
            return False
        doubtful, self._doubtful = self._doubtful, True
        return doubtful


def is_for_pages(chunk: bytes) -> bool:
    """Whether the AI SDK knows such a chunk: others come from ``chat.stream``."""
    if not chunk.startswith(_TYPE):
        if b'"type"' not in chunk[:4096]:
            return False
        value = from_json(chunk)
        kind = value.get("type") if isinstance(value, dict) else None
    else:
        kind = chunk[len(_TYPE) :].partition(b'"')[0].decode(errors="replace")
    return isinstance(kind, str) and (kind in MODELS or kind.startswith("data-"))


def as_events(chunks: Iterable[bytes]) -> bytes:
    """Chunks as server-sent events."""
    return b"".join([b"data: %b\n\n" % chunk for chunk in chunks])
