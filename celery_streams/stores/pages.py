"""A page of the log in two steps, decided without I/O.

A script gives entries and head as of one moment, and stops at so many bytes; but it costs the
server ten times what a bare ``XRANGE`` of the same entries does. So it only opens a page. If the
page goes on, and the log's largest entry says how much so many entries can be at most, a bare
``XRANGE`` brings the rest, up to the end that the script saw: entries never change, so this is
the page as of the script's moment. What may have changed in between is the log as a whole: it was
trimmed, or the stream was deleted, and perhaps made again. Then the opening is all of the page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from celery_streams.contracts import Head, Page
from celery_streams.stores.entries import Entries

#: Bytes of payload after which a page of the log is complete, whatever its limit.
PAGE_BYTES = 1024 * 1024
#: Entries of an opening, if the page can go on.
FEW = 32
#: Bytes of the largest entry of a log that is read in two steps. In others an entry's own bytes
#: cost more than that it is one.
SMALL = 32 * 1024
#: Bytes that a second step may bring, if its entries are larger than those of the opening.
_MOST = 4 * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Opening:
    """How a page of at most ``limit`` entries begins.

    ``largest`` is at least the bytes of each entry of the log; ``None``: unknown.
    """

    entries: Entries
    head: Head | None
    limit: int
    largest: int | None = None
    run_state: str | None = None

    @property
    def page(self) -> Page:
        """What there is, as a page."""
        return Page(self.entries, self.head, self.run_state)

    @property
    def complete(self) -> bool:
        """Whether this is all of the page."""
        entries, head = self.entries, self.head
        return (
            head is None
            or self.largest is None
            or self.largest > SMALL
            or not FEW <= len(entries) < self.limit
            or entries[-1].end >= head.end
            or entries.size >= PAGE_BYTES
        )

    @property
    def ids(self) -> tuple[str, str]:
        """The first and the last id of the rest, which begins with the last entry here."""
        last = self.entries[-1]
        return f"{last.end}-{last.count}", str(self._head.end)

    @property
    def wanted(self) -> int:
        """Entries to ask for: as many as fit if they are like those here."""
        count, size = len(self.entries), max(1, self.entries.size)
        most = _MOST // max(1, self.largest or 0)
        return 1 + max(1, min(self.limit - count, (PAGE_BYTES - size) * count // size, most))

    def joined(self, replies: Sequence[Any]) -> Page:
        """The page, from the replies to :meth:`~celery_streams.stores.commands.Commands.read_on`.

        Raises the first of them that is an error.
        """
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        found, (identity, end) = replies
        head = self._head
        if end is None or int(end) < head.end or (identity or b"").decode() != head.identity:
            return self.page
        rest = Entries([each[0] for each in found], [each[1][1] for each in found])
        if not rest or rest[0] != self.entries[-1]:
            return self.page
        rest = _up_to(rest[1:], PAGE_BYTES - self.entries.size)
        return replace(self.page, entries=self.entries + rest)

    @property
    def _head(self) -> Head:
        assert self.head is not None
        return self.head


def _up_to(entries: Entries, size: int) -> Entries:
    """Those up to the one that fills ``size`` bytes."""
    if entries.size <= size:
        return entries
    reached = list(accumulate(map(len, entries.payloads)))
    return entries[: bisect_left(reached, size) + 1]
