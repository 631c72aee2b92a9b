"""What every store promises: append, read, head, close, delete, on every kind of server."""

from __future__ import annotations

import time

import pytest

from celery_streams.chunks import frame
from celery_streams.contracts import JSON, Append, Appended, Head, Store
from celery_streams.errors import (
    ChunksLost,
    CredentialsRejected,
    OffsetGone,
    StreamClosed,
    StreamNotFound,
)
from celery_streams.slots import Slot
from tests.stores.contract.backend import SLOT, Backend, chunks_of
from tests.stores.contract.conftest import Connect, Place


def test_both_stores_are_stores(backend: Backend) -> None:
    """The sync one has every method of the protocol; so has the shell around the other."""
    assert isinstance(backend.store, Store)


def test_offsets_are_dense_whatever_the_size_of_the_batches(backend: Backend) -> None:
    """Chunk number n has sequence number n; an append says where its chunks are."""
    writer = backend.writer()
    assert writer.append("a") == Appended(0, 1, 1)
    assert writer.append("b", "c", "d") == Appended(1, 4, 1)
    assert writer.append("e") == Appended(4, 5, 1)
    assert backend.chunks() == list("abcde")


@pytest.mark.parametrize("offset", range(8))
def test_reading_starts_in_the_middle_of_a_batch(backend: Backend, offset: int) -> None:
    """The entry that holds the chunk comes whole; the next page continues it."""
    writer = backend.writer()
    writer.append(0, 1, 2)
    writer.append(3)
    writer.append(4, 5, 6)
    page = backend.store.read(SLOT, offset)
    assert backend.chunks(offset=offset) == list(range(offset, 7))
    assert [(entry.start, entry.end) for entry in page.entries] == [
        each for each in [(0, 3), (3, 4), (4, 7)] if each[1] > offset
    ]


def test_a_page_is_limited_by_entries_and_by_bytes(backend: Backend) -> None:
    """No reply is larger than about a megabyte and one entry, and nothing is skipped."""
    writer = backend.writer()
    for number in range(40):
        writer.append(number)
    for _ in range(5):
        writer.append("x" * 600_000)
    assert [e.end for e in backend.store.read(SLOT, 3, limit=20).entries] == list(range(4, 24))
    assert len(backend.store.read(SLOT, 40).entries) == 2
    assert len(backend.store.read(SLOT, 0).entries) == 42
    assert [len(str(chunk)) for chunk in backend.chunks(offset=40)] == [600_000] * 5


def test_reading_at_the_end_and_beyond_it_is_an_empty_page(backend: Backend) -> None:
    """The head says where the end is."""
    backend.writer().append("a", "b")
    for offset in (2, 3, 2**53 - 1):
        page = backend.store.read(SLOT, offset)
        assert not page.entries
        assert page.head == Head(SLOT, 2, epoch=1)


def test_reading_a_stream_that_does_not_exist_is_an_empty_page_without_a_head(
    backend: Backend,
) -> None:
    """It may be created yet; asking for its head is an error that names it."""
    assert backend.store.read(SLOT, 0).head is None
    with pytest.raises(StreamNotFound, match=str(SLOT)):
        backend.store.head(SLOT)


def test_the_head_of_a_registered_stream_without_chunks(backend: Backend) -> None:
    """It exists from ``initialize`` on, with its content type."""
    backend.open(SLOT, content_type="text/plain")
    assert backend.store.head(SLOT) == Head(SLOT, 0, content_type="text/plain")


@pytest.mark.parametrize(
    ("content_type", "chunks"),
    [
        ("text/plain", ["", "ä\n", "a" * 300, "\0", "\N{GRINNING FACE}"]),
        ("application/octet-stream", [b"", b"\n\n", b"\xff" * 300, b"\0\0\0\1a"]),
        (JSON, [None, "a\nb", {"a": [1, 2.5, "ü"]}, [], 0]),
    ],
)
def test_chunks_of_every_type_come_back_as_they_were(
    backend: Backend, content_type: str, chunks: list[object]
) -> None:
    """Message boundaries are kept, whatever bytes are in the messages; from the log and live."""
    writer = backend.writer(content_type=content_type)
    writer.append(*chunks)
    for chunk in chunks:
        writer.append(chunk)
    writer.close()
    assert backend.chunks() == chunks * 2
    assert backend.follow() == chunks * 2


def test_append_many_answers_in_order_and_one_failure_is_nobody_elses(backend: Backend) -> None:
    """On a cluster the streams sit on several nodes."""
    writers = [backend.writer(Slot.run(f"run-{number}")) for number in range(9)]
    writers[4].close()
    results = backend.store.append_many(
        [Append(w.slot, w.batch(n, n), w.producer, w.credentials) for n, w in enumerate(writers)]
    )
    assert isinstance(results.pop(4), StreamClosed)
    assert results == [Appended(0, 2, 1)] * 8
    assert backend.chunks(Slot.run("run-7")) == [7, 7]


def test_several_producers_share_a_stream_without_disturbing_each_other(backend: Backend) -> None:
    """Each numbers its batches for itself; the stream is in the order of arrival."""
    writers = [backend.writer() for _ in range(3)]
    for number in range(30):
        assert writers[number % 3].append(number).offset == number
    assert backend.chunks() == list(range(30))


def test_a_batch_sent_again_is_applied_once_and_answers_with_its_first_offset(
    backend: Backend,
) -> None:
    """Also after others have appended, and however often."""
    first, second = backend.writer(), backend.writer()
    first.append("a", "b")
    second.append("c")
    for _ in range(3):
        assert first.resend() == Appended(0, 2, 1, duplicate=True)
    assert first.append("d").offset == 3
    assert backend.chunks() == list("abcd")


def test_a_batch_sent_again_after_the_end_was_applied_all_the_same(backend: Backend) -> None:
    """The writer that lost the reply learns that its chunks are there, though the stream has
    been closed and its credentials withdrawn since."""
    writer = backend.writer()
    writer.append("a")
    writer.close()
    backend.authority.revoke(SLOT)
    assert writer.resend().duplicate
    with pytest.raises(StreamClosed):
        writer.append("b")


def test_nothing_is_appended_to_a_closed_stream(backend: Backend) -> None:
    """The error says how it ended; closing again changes nothing."""
    writer = backend.writer()
    writer.append("a")
    assert writer.close().closed == "CLOSED"
    with pytest.raises(StreamClosed, match=rf"{SLOT} has ended \(CLOSED\)"):
        writer.append("b")
    assert writer.close() == backend.store.head(SLOT) == Head(SLOT, 1, "CLOSED", epoch=1)
    assert backend.chunks() == ["a"]


def test_closing_says_the_same_as_asking_for_the_head(connect: Connect) -> None:
    """Trim point, epoch and content type included."""
    backend = connect(max_chunks=2)
    writer = backend.writer(content_type="text/plain")
    for chunk in "abcde":
        writer.append(chunk)
    assert writer.close() == backend.store.head(SLOT) == Head(SLOT, 5, "CLOSED", "text/plain", 3, 1)


def test_closing_needs_a_stream_and_valid_credentials(backend: Backend) -> None:
    """No stream: not found. Withdrawn: rejected, and it stays open."""
    writer = backend.writer()
    backend.authority.revoke(SLOT)
    with pytest.raises(CredentialsRejected):
        writer.close()
    assert backend.store.head(SLOT).closed is None
    backend.store.delete(SLOT)
    with pytest.raises(StreamNotFound):
        writer.close()


def test_revoked_credentials_are_refused_and_new_ones_accepted(backend: Backend) -> None:
    """The same batch goes through with the new ones: nothing was written by the refusal."""
    writer = backend.writer()
    writer.append("a")
    assert backend.authority.revoke(SLOT) == 1
    with pytest.raises(CredentialsRejected, match=str(SLOT)):
        writer.append("b")
    writer.credentials = backend.open()
    assert writer.append("b") == Appended(1, 2, 1)
    assert backend.chunks() == ["a", "b"]


def test_expired_credentials_are_refused_by_the_servers_clock(connect: Connect) -> None:
    """The message says that they expired, and never shows them."""
    backend = connect(credentials_ttl=0.2)
    writer = backend.writer()

    def append_until_refused() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            writer.append("more")

    with pytest.raises(CredentialsRejected, match="expired") as refused:
        append_until_refused()
    assert writer.credentials.token not in str(refused.value)
    assert writer.credentials.token not in repr(writer.credentials)


def test_somebody_elses_credentials_are_refused(backend: Backend) -> None:
    """A grant holds for its own stream only."""
    writer, other = backend.writer(), backend.writer(Slot.run("run-1", "other"))
    writer.credentials = other.credentials
    with pytest.raises(CredentialsRejected):
        writer.append("a")


def test_chunks_the_store_lost_are_reported_not_papered_over(
    backend: Backend, place: Place
) -> None:
    """After FLUSHALL the writer mints anew and must not go on as if its first batch were there."""
    writer = backend.writer()
    writer.append("a")
    place.flush()
    with pytest.raises(CredentialsRejected):
        writer.append("b")
    writer.credentials = backend.open()
    with pytest.raises(ChunksLost, match="CELERY_STREAMS_WAIT_REPLICAS"):
        writer.append("b")
    assert backend.chunks() == []


def test_trimming_keeps_the_last_chunks_by_whole_batches(connect: Connect) -> None:
    """At least ``max_chunks`` stay readable, and never a batch more than needed."""
    backend = connect(max_chunks=5)
    writer = backend.writer()
    for start in range(0, 21, 3):
        writer.append(start, start + 1, start + 2)
        head = backend.store.head(SLOT)
        assert min(head.end, 5) <= head.end - head.first < 5 + 3
        assert backend.chunks(offset=head.first) == list(range(head.first, head.end))


def test_reading_before_the_trim_point_says_where_reading_can_start(connect: Connect) -> None:
    """``OffsetGone.first`` is the oldest chunk there is, and reading works there."""
    backend = connect(max_chunks=2)
    writer = backend.writer()
    for number in range(6):
        writer.append(number)
    for offset in (0, 3):
        with pytest.raises(OffsetGone, match=f"offset {offset} of {SLOT}") as gone:
            backend.store.read(SLOT, offset)
        assert gone.value.first == 4
    assert backend.chunks(offset=4) == [4, 5]


def test_a_batch_larger_than_the_limit_is_kept_whole(connect: Connect) -> None:
    """A stream never loses the batch it has just acknowledged."""
    backend = connect(max_chunks=2)
    writer = backend.writer()
    writer.append("old")
    writer.append(*range(10))
    assert backend.store.head(SLOT).first == 1
    assert backend.chunks(offset=5) == list(range(4, 10))


def test_deleting_removes_the_stream_and_says_whether_there_was_one(backend: Backend) -> None:
    """The run forgets its key; its other streams stay; the name can be used again."""
    backend.writer(Slot.run("run-1", "other")).append("kept")
    writer = backend.writer()
    writer.append("a")
    assert backend.store.delete(SLOT)
    assert not backend.store.delete(SLOT)
    assert backend.runs.describe("run-1").keys == ("other",)
    assert backend.chunks(Slot.run("run-1", "other")) == ["kept"]
    with pytest.raises(CredentialsRejected):
        writer.append("b")
    backend.writer().append("anew")
    assert backend.chunks() == ["anew"]


def test_everything_expires_after_the_retention(connect: Connect, place: Place) -> None:
    """No key is left without an expiry (at most a twentieth longer), whatever was done.

    The index of all streams goes once none can be left for it to name.
    """
    backend = connect(retention=100, credentials_ttl=50)
    for number in range(3):
        writer = backend.writer(Slot.run(f"run-{number}"))
        writer.append("a")
        foreign = backend.writer(Slot.session(f"chat-{number}"), writer.attempt)
        foreign.append("b")
        foreign.close()
        if number:
            backend.runs.finish(writer.attempt, "SUCCESS")
    client = backend.link.client
    keys = list(client.scan_iter("*"))
    assert len(keys) >= 3 * 7
    longest = {key: 300_000 if b"/index/" in key else 105_000 for key in keys}
    left = {key: client.pttl(key) for key in keys}
    assert {key: ms for key, ms in left.items() if not 0 < ms <= longest[key]} == {}


def test_a_page_shows_one_moment(backend: Backend) -> None:
    """Entries and head are read in one step: what the head counts is in the log."""
    writer = backend.writer()
    writer.append("a", "b")
    page = backend.store.read(SLOT, 0)
    assert page.head is not None
    assert page.entries[-1].end == page.head.end == 2
    assert page.entries[0].payload == frame([b'"a"', b'"b"'], JSON)
    assert chunks_of(page.entries) == ["a", "b"]
