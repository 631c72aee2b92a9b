"""What a reader promises on a server that works: offsets, live chunks, the end, time limits."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest

from celery_streams.errors import (
    ChunksLost,
    InvalidOffset,
    OffsetGone,
    ReadTimeout,
    StoreUnavailable,
    StreamNotFound,
)
from celery_streams.redis.layout import Layout
from celery_streams.slots import Slot
from celery_streams.stores.redis import RedisStore
from tests.reading.conftest import Connect
from tests.reading.readers import read, wait_for_listeners
from tests.servers import ServerProcess
from tests.servers.children import eventually
from tests.stores.contract.backend import SLOT, Backend, Background


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(0, "abcde"), (1, "bcde"), (4, "e"), (5, ""), (9, ""), (-1, "e"), (-3, "cde"), (-9, "abcde")],
)
def test_reading_starts_at_the_offset(
    writing: Backend, reading: Backend, offset: int, expected: str
) -> None:
    """Also in the middle of a batch; a negative offset counts from the end."""
    writer = writing.writer()
    writer.append("a", "b")
    writer.append("c", "d", "e")
    writer.close()
    reader = read(reading, offset=offset)
    assert "".join(reader) == expected
    assert reader.closed == "CLOSED"


def test_now_is_what_comes_from_here_on(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """Nothing that was there before, everything after."""
    writer = writing.writer()
    writer.append("old")
    chunks = Background(list, read(reading, offset="now"))
    wait_for_listeners(server)
    writer.append("new", "newer")
    writer.close()
    assert chunks.result() == ["new", "newer"]


def test_a_reader_beyond_the_end_waits_for_its_offset(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """What comes before the offset is not shown."""
    writer = writing.writer()
    writer.append(0)
    chunks = Background(list, read(reading, offset=4))
    wait_for_listeners(server)
    writer.append(1, 2)
    writer.append(3, 4, 5)
    writer.append(6)
    writer.close()
    assert chunks.result() == [4, 5, 6]


@pytest.mark.parametrize(
    "offset", [True, False, 1.5, "12", "NOW", "", None, 2**60, -(2**60), b"now", [1], "x" * 999]
)
def test_what_is_not_an_offset_is_refused_at_once(reading: Backend, offset: Any) -> None:
    """Before anything is asked of the server, with a message that says what an offset is."""
    with pytest.raises(InvalidOffset, match="give a sequence number") as refused:
        read(reading, offset=offset)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("offset", [0, "now", -3])
def test_a_reader_may_come_before_the_stream(
    writing: Backend, reading: Backend, server: ServerProcess, offset: Any
) -> None:
    """It gets the stream from its first chunk on, without waiting for the next look."""
    chunks = Background(list, read(reading, offset=offset, recheck=60, timeout=100))
    wait_for_listeners(server)
    writer = writing.writer()
    writer.append("first")
    writer.append("second")
    writer.close()
    assert chunks.result(10) == ["first", "second"]


@pytest.mark.parametrize("live", [True, False])
def test_the_end_says_how_the_run_ended(
    writing: Backend, reading: Backend, server: ServerProcess, live: bool
) -> None:
    """Whether the reader was there when it happened or came later."""
    writer = writing.writer()
    writer.append("a")
    reader = read(reading)
    assert next(reader) == "a"
    assert reader.closed is None
    rest = Background(list, reader) if live else None
    if live:
        wait_for_listeners(server)
    writing.runs.finish(writer.attempt, "FAILURE")
    assert (rest.result() if rest else list(reader)) == []
    assert reader.closed == "FAILURE"
    assert reader.offset == 1
    assert list(reader) == []


@pytest.mark.parametrize(
    ("content_type", "chunks"),
    [("text/plain", ["ä", "", "b\n"]), ("application/x-thing", [b"\n", b"", b"\xff"])],
)
def test_text_and_bytes_come_back_as_they_were(
    writing: Backend, reading: Backend, content_type: str, chunks: list[Any]
) -> None:
    """From any offset."""
    writer = writing.writer(content_type=content_type)
    writer.append(*chunks)
    writer.close()
    for offset in range(3):
        assert list(read(reading, offset=offset)) == chunks[offset:]


def test_the_caller_may_decode_itself(writing: Backend, reading: Backend) -> None:
    """It gets each chunk's bytes and the content type."""
    writer = writing.writer()
    writer.append({"a": 1}, 2)
    writer.close()
    pairs = list(read(reading, decode=lambda data, kind: (data, kind)))
    assert pairs == [(b'{"a":1}', "application/json"), (b"2", "application/json")]


def test_silence_for_the_whole_timeout_is_an_error_that_says_where_to_resume(
    writing: Backend, reading: Backend
) -> None:
    """Not earlier and not much later, whatever the interval between two looks at the log."""
    writer = writing.writer()
    writer.append("a", "b")
    for recheck in (0.05, 0.17, 5.0):
        reader = read(reading, timeout=0.3, recheck=recheck)
        assert [next(reader), next(reader)] == ["a", "b"]
        start = time.monotonic()
        with pytest.raises(ReadTimeout, match="Resume with offset=2") as silence:
            next(reader)
        assert 0.29 <= time.monotonic() - start < 1.5
        assert silence.value.offset == reader.offset == 2
    writer.append("c")
    writer.close()
    assert list(read(reading, offset=silence.value.offset)) == ["c"]


def test_every_chunk_starts_the_timeout_anew(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """A stream that lasts longer than the timeout is fine as long as something comes."""
    writer = writing.writer()
    start = time.monotonic()
    chunks = Background(list, read(reading, timeout=0.6))
    wait_for_listeners(server)
    count = 0
    while time.monotonic() - start < 0.9:
        writer.append(count)
        count += 1
        time.sleep(0.1)  # the pace of a slow writer
    writer.close()
    assert chunks.result() == list(range(count))


def test_the_consumers_own_time_does_not_count(writing: Backend, reading: Backend) -> None:
    """A consumer that takes longer than the timeout for one chunk is not told of silence."""
    writer = writing.writer()
    writer.append("a")
    reader = read(reading, timeout=0.2)
    assert next(reader) == "a"
    time.sleep(0.3)  # the consumer is busy
    writer.append("b")
    assert next(reader) == "b"
    time.sleep(0.3)
    start = time.monotonic()
    with pytest.raises(ReadTimeout):
        next(reader)
    assert time.monotonic() - start >= 0.19


def test_a_reader_without_a_timeout_waits(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """Through any number of looks at the log."""
    looks: list[float] = []
    writer = writing.writer()

    def count_looks() -> None:
        looks.append(time.monotonic())

    chunks = Background(list, read(reading, timeout=None, recheck=0.02, on_idle=count_looks))
    eventually(lambda: len(looks) >= 10, "ten looks")
    writer.append("late")
    writer.close()
    assert chunks.result() == ["late"]


def test_chunks_before_the_trim_point_are_gone(connect: Connect) -> None:
    """The error says where reading can start; "the last n" is never an error."""
    backend = connect(max_chunks=3)
    writer = backend.writer()
    for number in range(9):
        writer.append(number)
    writer.close()
    with pytest.raises(OffsetGone, match="offset 2") as gone:
        next(read(backend, offset=2))
    assert list(read(backend, offset=gone.value.first)) == [6, 7, 8]
    assert list(read(backend, offset=-9)) == [6, 7, 8]


def test_a_reader_that_is_overtaken_by_trimming_is_told(connect: Connect) -> None:
    """It never skips chunks silently."""
    backend = connect(max_chunks=3)
    writer = backend.writer()
    writer.append(0)
    reader = read(backend, offset=-1)
    assert next(reader) == 0
    for number in range(1, 9):
        writer.append(number)
    with pytest.raises(OffsetGone) as gone:
        list(reader)
    assert gone.value.first == 6
    assert reader.offset == 1


def test_a_stream_deleted_while_it_is_read_is_an_error(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """At once, and it names the stream."""
    writing.writer().append("a")
    chunks = Background(list, read(reading, recheck=60, timeout=100))
    wait_for_listeners(server)
    writing.store.delete(SLOT)
    with pytest.raises(StreamNotFound, match=str(SLOT)):
        chunks.result(10)


def test_a_store_that_lost_what_was_read_is_an_error(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """A stream that begins again below the reader's offset is not the stream it was reading."""
    writing.writer().append("a", "b", "c")
    reader = read(reading, recheck=0.05, timeout=5)
    assert [next(reader) for _ in range(3)] == ["a", "b", "c"]
    server.flush()
    writing.writer().append("other")
    with pytest.raises(ChunksLost, match="offset 3"):
        next(reader)


def test_a_run_that_ended_without_the_stream_ends_the_reader(reading: Backend) -> None:
    """Nothing will come; the reader says how the run ended instead of waiting."""
    reader = read(reading, recheck=0.05, on_idle=lambda: "SUCCESS")
    assert list(reader) == []
    assert reader.closed == "SUCCESS"


def test_a_run_that_opens_its_stream_and_ends_between_two_looks_is_read_whole(
    writing: Backend, reading: Backend
) -> None:
    """The reader has found no stream, and asks about the run; meanwhile the run does it all.

    "It is over" is news then, and "there is no stream" is not.
    """

    def all_of_it() -> str:
        writer = writing.writer()
        writer.store = unheard(writing)
        for number in range(3):
            writer.append(number)
        writer.close()
        return "SUCCESS"

    reader = read(reading, recheck=0.05, on_idle=all_of_it)
    assert list(reader) == [0, 1, 2]


def test_a_run_that_is_over_does_not_hide_what_its_stream_still_gets(
    writing: Backend, reading: Backend
) -> None:
    """A stream that exists ends when it is closed, or by the timeout, after one more look."""
    writer = writing.writer()
    writer.store = unheard(writing)
    looks = []

    def over_at_the_last_moment() -> str | None:
        looks.append(1)
        if len(looks) < 3:
            return None
        if len(looks) == 3:  # after the third look at the log, as the timeout is over
            writer.append("late")
        return "SUCCESS"

    reader = read(reading, recheck=0.3, timeout=0.9, on_idle=over_at_the_last_moment)
    assert next(reader) == "late"
    with pytest.raises(ReadTimeout):
        next(reader)
    assert (reader.closed, reader.offset) == (None, 1)


def test_a_run_that_cannot_be_asked_about_is_no_reason_to_stop(
    writing: Backend, reading: Backend
) -> None:
    """The question is asked again after the next silence."""
    asked: list[int] = []

    def unavailable_at_first() -> str | None:
        asked.append(1)
        if len(asked) < 4:
            raise StoreUnavailable("not now")
        return "LOST"

    reader = read(reading, recheck=0.02, on_idle=unavailable_at_first)
    assert list(reader) == []
    assert (reader.closed, len(asked)) == ("LOST", 4)


def test_a_lost_close_message_delays_the_end_and_never_hangs(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """vercel/resumable-stream #47: readers stayed open for ever when the one DONE was lost."""
    writer = writing.writer()
    writer.append("a")
    reader = read(reading, recheck=0.5)
    chunks = Background(list, reader)
    wait_for_listeners(server)
    start = time.monotonic()
    unheard(writing).close(SLOT, writer.credentials, writer.attempt)
    assert chunks.result(10) == ["a"]
    assert time.monotonic() - start < 0.5 + 1.0
    assert reader.closed == "CLOSED"


class Unheard(Layout):
    """Key names of a store whose messages reach nobody; everything else happens."""

    def live(self, slot: Slot) -> str:
        return self.base(slot) + "nobody"


def unheard(backend: Backend) -> RedisStore:
    """A store on the same data whose messages get lost."""
    return RedisStore(backend.link, Unheard(backend.settings.prefix), backend.settings)


def test_two_readers_at_different_offsets_do_not_disturb_each_other(
    writing: Backend, connect: Connect, server: ServerProcess
) -> None:
    """Each gets its own part, live."""
    writer = writing.writer()
    writer.append(0, 1, 2)
    offsets = [0, 2, -1, "now", 5]
    readers = [Background(list, read(connect(), offset=offset)) for offset in offsets]
    wait_for_listeners(server, len(offsets))
    writer.append(3, 4, 5)
    writer.append(6)
    writer.close()
    everything = list(range(7))
    starts = [0, 2, 2, 3, 5]
    assert [each.result() for each in readers] == [everything[start:] for start in starts]


def test_leaving_the_context_releases_the_connection(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """Closing is safe to repeat, and a closed reader has nothing more to say."""
    writing.writer().append("a")
    with read(reading, recheck=0.02, on_idle=lambda: None, timeout=0.2) as reader:
        assert next(reader) == "a"
        with pytest.raises(ReadTimeout):
            next(reader)
    writing.writer().append("b")
    with read(reading, recheck=60) as reader:
        waiting = [next(reader), next(reader)]
        assert waiting == ["a", "b"]
    reader.close()
    assert list(reader) == []
    wait_for_listeners(server, 0)


def test_a_reader_that_is_let_go_of_releases_the_connection(
    writing: Backend, reading: Backend, server: ServerProcess
) -> None:
    """Without ``with``, at the latest when it is collected."""
    if reading.loop is not None:
        pytest.skip("an event loop closes an abandoned async generator itself, when it runs")
    writing.writer().append("a")
    reader = read(reading, recheck=0.02, timeout=0.1)
    with pytest.raises(ReadTimeout):
        list(reader)
    wait_for_listeners(server, 0)
    reader = read(reading)
    assert next(reader) == "a"
    writing.writer().append("b")
    assert next(reader) == "b"
    del reader
    gc.collect()
    wait_for_listeners(server, 0)
