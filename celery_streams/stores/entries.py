"""Entries as the server tells of them, taken apart only when somebody looks at one.

Whoever passes a long page on needs its payloads and where it ends: making an object of each entry
would cost more than reading it from the server does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from celery_streams.contracts import Entry


class Entries(Sequence[Entry]):
    """A sequence of entries, of their ids (``end-count``) and payloads."""

    __slots__ = ("_ids", "payloads")

    def __init__(self, ids: list[bytes], payloads: list[bytes]) -> None:
        self._ids = ids
        self.payloads = payloads

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads))

    def __add__(self, more: Entries) -> Entries:
        return Entries(self._ids + more._ids, self.payloads + more.payloads)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> Entries: ...
    def __getitem__(self, at: int | slice) -> Entry | Entries:
        if isinstance(at, slice):
            return Entries(self._ids[at], self.payloads[at])
        return _entry(self._ids[at], self.payloads[at])

    def __iter__(self) -> Iterator[Entry]:
        return map(_entry, self._ids, self.payloads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} entries>"


def payloads_of(entries: Sequence[Entry]) -> list[bytes]:
    """The payloads of entries, in a list of the caller's own."""
    if isinstance(entries, Entries):
        return entries.payloads.copy()
    return [entry.payload for entry in entries]


def _entry(entry_id: bytes, payload: bytes) -> Entry:
    end, _, count = entry_id.partition(b"-")
    return Entry(int(end), int(count), payload)
