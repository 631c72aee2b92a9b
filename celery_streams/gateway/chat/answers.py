"""One turn's chunks out of a session's ``out`` stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

from pydantic_core import from_json

from celery_streams.chat.chunks import MODELS
from celery_streams.chat.turns import SessionState
from celery_streams.chunks import unframe
from celery_streams.contracts import JSON, Entry
from celery_streams.errors import OffsetGone, StoreUnavailable
from celery_streams.gateway.chat.following import SessionFeed
from celery_streams.gateway.live import check_offset
from celery_streams.slots import Slot

_START = b'{"type":"start",'
_TAKEN = b'{"type":"data-inbox",'
_ENDS = (b'{"type":"finish"}', b'{"type":"finish",', b'{"type":"abort"}', b'{"type":"abort",')
_TYPE = b'{"type":"'

Look = Callable[[], Awaitable[SessionState]]


class Answer:
    """Follows one answer: the turn whose response message is ``reply``.

    ``offset`` is a position in ``out`` before the turn's first chunk. ``look`` asks for the
    session's state, and sees to a turn whose worker is lost. ``given``: an :attr:`end` of
    before, to go on from.
    """

    def __init__(
        self,
        feed: SessionFeed,
        slot: Slot,
        reply: str,
        offset: int,
        look: Look,
        *,
        given: int = 0,
    ) -> None:
        self._feed = feed
        self._slot = slot
        self._reply = reply
        self._given = given
        # The chunk before says whether anything follows.
        self._offset = given - 1 if given else offset
        self._look = look
        self._begun = given > 0
        self._doubtful = False
        #: The turn has ended, and everything of it was given.
        self.complete = False
        #: What lies before the turn, or the turn itself, is not there any more.
        self.trimmed = False

    @property
    def end(self) -> int:
        """Where in ``out`` the chunks end that were given; 0 before the first."""
        return max(self._offset, self._given) if self._begun else 0

    async def pieces(self) -> AsyncGenerator[list[bytes], None]:
        """The turn's chunks, as they come; an empty list is a sign of life.

        Raises:
            OffsetGone: the turn was trimmed.
        """
        moved = not self.complete
        while moved:
            moved = False
            try:
                async with aclosing(self._feed.entries(self._slot, self._offset)) as entries:
                    async for entry in entries:
                        if entry is None:
                            if await self._is_over():
                                self.complete = True
                                return
                            yield []
                            continue
                        self._doubtful = False
                        if found := await self._take(entry):
                            yield found
                        if self.complete:
                            return
                        if moved := self._offset != entry.end:
                            break
            except OffsetGone as gone:
                self._skip_to(gone)
                moved = True

    async def so_far(self, most: int) -> tuple[list[bytes], bool]:
        """What there is, about ``most`` bytes of it; and is that all there is now?

        Raises:
            OffsetGone: the turn was trimmed.
            Problem: 400; nobody was given so much of it.
        """
        found: list[bytes] = []
        size = 0
        while not self.complete and size < most:
            try:
                page = await self._feed.read(self._slot, self._offset)
            except OffsetGone as gone:
                self._skip_to(gone)
                continue
            if self._given and page.head is not None:
                check_offset(self._given, page.head)
            for entry in page.entries:
                taken = await self._take(entry)
                found += taken
                size += sum(map(len, taken))
                if not self._goes_on_at(entry.end) or size >= most:
                    break
            if page.entries:
                self._doubtful = False
            elif await self._is_over():
                self.complete = True
            elif not self._doubtful:
                return found, True
        return found, self.complete

    def _skip_to(self, gone: OffsetGone) -> None:
        """Other turns were trimmed, while this message waited; or was its own?"""
        if self._begun:
            raise gone
        self._offset, self.trimmed = gone.first, True

    def _goes_on_at(self, offset: int) -> bool:
        return self._offset == offset and not self.complete

    async def _take(self, entry: Entry) -> list[bytes]:
        """What of an entry belongs to the answer. The position is elsewhere if that is."""
        found: list[bytes] = []
        first = max(entry.start, self._offset)
        chunks = unframe(entry.payload, JSON)[first - entry.start :]
        for position, chunk in enumerate(chunks, first):
            self._offset = position + 1
            if not self._begun:
                if chunk.startswith(_TAKEN) and self._reply in from_json(chunk)["data"]["taken"]:
                    await self._join(position)
                    break
                if not chunk.startswith(_START):
                    continue
                if from_json(chunk).get("messageId") != self._reply:
                    continue
                self._begun = True
            if position >= self._given and is_for_pages(chunk):
                found.append(chunk)
            if chunk.startswith(_ENDS):
                self.complete = True
                break
        return found

    async def _join(self, position: int) -> None:
        """Another turn has taken this message: follow the one that has written ``position``.

        It may have ended since, so it is looked for in the log, not in the session's state.
        """
        reply, start, ended, reading = None, position, True, 0
        while reading < position:
            try:
                page = await self._feed.read(self._slot, reading)
            except OffsetGone as gone:
                reading = gone.first
                continue
            if not page.entries:
                break
            for entry in page.entries:
                for place, chunk in enumerate(unframe(entry.payload, JSON), entry.start):
                    if place >= position:
                        break
                    if chunk.startswith(_START):
                        message_id = from_json(chunk).get("messageId")
                        if ended or message_id != reply:
                            reply, start, ended = message_id, place, False
                    elif chunk.startswith(_ENDS):
                        ended = True
                reading = entry.end
        if reply is not None:
            self._reply, self._offset = reply, start

    async def _is_over(self) -> bool:
        """There is nothing new: is there anything to wait for?

        Asked twice: what has ended between the last read and this shows in the next read.
        """
        try:
            state = await self._look()
        except StoreUnavailable:
            return False
        active = state.active
        waits = any(request.reply == self._reply for request in state.pending)
        if self._begun:  # a turn that begins later is another one
            over = active is None or active.start >= self._offset
        else:
            over = not waits and (active is None or active.reply != self._reply)
        doubtful, self._doubtful = self._doubtful, over
        return over and doubtful


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
