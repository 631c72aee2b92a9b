"""Pages in two steps: what is asked for in the second, and what is made of the answer."""

from __future__ import annotations

from typing import Any

from celery_streams.contracts import Entry, Head
from celery_streams.slots import Slot
from celery_streams.stores.entries import Entries, payloads_of
from celery_streams.stores.pages import FEW, PAGE_BYTES, SMALL, Opening

SLOT = Slot("path", "a", "default")


def entries(start: int, stop: int, payload: bytes = b"1") -> Entries:
    """Entries of one chunk each."""
    ids = [b"%d-1" % (number + 1) for number in range(start, stop)]
    return Entries(ids, [payload] * len(ids))


def replies(found: Entries, identity: bytes | None = b"first", end: bytes = b"100") -> list[Any]:
    return [[[b"%d-%d" % (e.end, e.count), [b"d", e.payload]] for e in found], [identity, end]]


def opening(payload: bytes = b"1", largest: int = 1, limit: int = 4096) -> Opening:
    head = Head(SLOT, 100, identity="first")
    return Opening(entries(0, FEW, payload), head, limit, largest)


def test_as_many_entries_are_asked_for_as_fit() -> None:
    """By the size of those that came; by the largest of the log; by the limit."""
    assert not opening().complete
    assert opening().wanted == 1 + 4096 - FEW
    assert opening(limit=FEW + 5).wanted == 1 + 5
    assert opening(b"x" * 1024, 1024).wanted == 1 + 1024 - FEW
    assert (opening(b"1", SMALL).wanted - 1) * SMALL == 4 * PAGE_BYTES


def test_a_log_of_unknown_or_large_entries_is_read_in_one_step() -> None:
    """There, nobody knows what many entries would bring."""
    head = Head(SLOT, 100)
    assert Opening(entries(0, FEW), head, 4096, None).complete
    assert Opening(entries(0, FEW), head, 4096, SMALL + 1).complete
    assert Opening(entries(0, FEW), None, 4096, 1).complete


def test_a_page_that_is_full_or_at_the_end_is_complete() -> None:
    """By entries, by bytes, or because there are no more."""
    assert opening(limit=FEW).complete
    assert opening(b"x" * (PAGE_BYTES // FEW), SMALL).complete
    assert Opening(entries(0, FEW - 1), Head(SLOT, 100), 4096, 1).complete
    assert Opening(entries(0, FEW), Head(SLOT, FEW), 4096, 1).complete


def test_the_rest_is_taken_only_from_the_same_stream() -> None:
    """One with another identity or an earlier end, or without the last entry, is another."""
    rest, begun = entries(FEW - 1, 100), entries(0, FEW)
    assert opening().joined(replies(rest)).entries == entries(0, 100)
    for reply in (
        replies(rest, b"second"),
        replies(rest, None),
        replies(rest, end=b"99"),
        [replies(rest)[0], [None, None]],
        replies(entries(FEW, 100)),
        replies(entries(FEW - 1, 100, b"2")),
        replies(entries(0, 0)),
    ):
        assert opening().joined(reply).entries == begun


def test_entries_are_a_sequence() -> None:
    """Made when they are looked at; equal to others with the same in them."""
    some = entries(3, 6)
    assert some == [Entry(4, 1, b"1"), Entry(5, 1, b"1"), Entry(6, 1, b"1")]
    assert some[1:] == (Entry(5, 1, b"1"), Entry(6, 1, b"1"))
    assert (len(some), some[-1].start, some.size) == (3, 5, 3)
    assert not Entries([], [])
    assert payloads_of(some) == payloads_of(tuple(some)) == [b"1"] * 3
    assert some != [b"1"] * 3
