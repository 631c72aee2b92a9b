"""Writers on a real server: results, order, batches, fairness, iterables."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from celery_streams import (
    ChunkTooLarge,
    ConfigurationError,
    InvalidChunk,
    Slot,
    StreamClosed,
    StreamError,
    WriteResult,
)
from celery_streams.contracts import Attempt
from celery_streams.writing.writers import AttemptWriters
from tests.lifecycle.client import chunks_of
from tests.servers import Proxy
from tests.servers.children import eventually
from tests.writing.conftest import OpenStreams


def test_write_append_flush_and_wait_say_where_the_chunks_are(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """append: the chunk's number; flush: the end; wait: the end and how many were this writer's."""
    streams = open_streams()
    with streams.open_writer(slot) as writer:
        assert writer.append("a") == 0
        writer.write("b")
        writer.write("c")
        assert writer.flush() == 3
        assert writer.append("d") == 3
        assert writer.wait() == WriteResult(offset=4, count=4)
    assert streams.open_writer(slot).append("e") == 4
    assert streams.open_writer(slot).wait() == WriteResult(0, 0)
    assert chunks_of(streams, slot) == list("abcde")
    assert streams.stats().chunks == 5


def test_writers_and_threads_on_one_slot_each_keep_their_order(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """Four writers, four threads each, of which two share a writer: dense, complete, in order."""
    streams = open_streams()

    def write(writer: Any, name: int) -> None:
        for number in range(300):
            writer.write([name, number])

    writers = [streams.open_writer(slot) for _ in range(4)]
    threads = [threading.Thread(target=write, args=(writers[name % 4], name)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(writer.wait().count for writer in writers) == 16 * 300
    found: dict[int, list[int]] = defaultdict(list)
    for name, number in chunks_of(streams, slot):
        found[name].append(number)
    assert found == {name: list(range(300)) for name in range(16)}


def test_what_is_written_while_a_batch_flies_goes_out_as_one(
    open_streams: OpenStreams, slot: Slot, proxy: Proxy
) -> None:
    """Self-clocking: no timer, one round trip's worth of chunks to a batch."""
    streams = open_streams(port=proxy.port)
    direct = open_streams()
    writer = streams.open_writer(slot)
    writer.append("warm")
    for times in range(1, 6):
        proxy.stall("down")
        writer.write("first")
        eventually(lambda times=times: _end(direct, slot) > 1 + (times - 1) * 1001, "it is applied")
        for number in range(1000):
            writer.write(number)
        proxy.resume("down")
        assert writer.flush() == 1 + times * 1001
    page = direct.runtime.store.read(slot, 0)
    assert [entry.count for entry in page.entries] == [1] + [1, 1000] * 5
    assert streams.stats().appends == 11


def test_an_idle_writer_s_chunk_leaves_at_once(open_streams: OpenStreams, slot: Slot) -> None:
    """Nothing waits for company: one chunk, one batch."""
    streams = open_streams()
    writer = streams.open_writer(slot)
    for _ in range(20):
        writer.append("x")
    assert streams.stats().appends == 20


def test_a_hot_stream_does_not_starve_a_quiet_one(open_streams: OpenStreams, slot: Slot) -> None:
    """While another stream always has more to send, each chunk of the quiet one gets through."""
    streams = open_streams(batch_chunks=50)
    quiet = streams.open_writer(Slot.run(slot.owner, "quiet"))
    quiet.append("warm")
    hot = streams.open_writer(slot)
    hot.append("warm")
    stop = threading.Event()

    def heat() -> None:
        while not stop.is_set():
            hot.write("x" * 50)

    thread = threading.Thread(target=heat)
    thread.start()
    try:
        for number in range(30):
            assert quiet.append(number) == number + 1
    finally:
        stop.set()
        thread.join()
    hot.wait()


def test_many_streams_share_round_trips(open_streams: OpenStreams, slot: Slot) -> None:
    """200 writers at once, in a process with one flusher: all durable, none mixed."""
    streams = open_streams()
    writers = [streams.open_writer(Slot.run(slot.owner, f"k{n}")) for n in range(200)]
    for number in range(20):
        for name, writer in enumerate(writers):
            writer.write([name, number])
    for name, writer in enumerate(writers):
        assert writer.wait() == WriteResult(20, 20)
        expected = [[name, number] for number in range(20)]
        assert chunks_of(streams, writer.slot) == expected
    assert streams.stats().initializes == 200


def test_batches_keep_to_their_limits(open_streams: OpenStreams, slot: Slot) -> None:
    """Neither more chunks nor more bytes than configured in one entry."""
    streams = open_streams(batch_chunks=10, batch_bytes=100)
    with streams.open_writer(slot) as writer:
        for number in range(500):
            writer.write("x" * (number % 30))
    entries = streams.runtime.store.read(slot, 0).entries
    assert sum(entry.count for entry in entries) == 500
    assert all(entry.count <= 10 and len(entry.payload) <= 110 for entry in entries)


@pytest.mark.parametrize(
    ("content_type", "chunks"),
    [("text/plain", ["a\nb", "", "ü"]), ("image/png", [b"\x00\n", b"", bytes(range(256))])],
)
def test_text_and_bytes_keep_their_boundaries(
    open_streams: OpenStreams, slot: Slot, content_type: str, chunks: list[Any]
) -> None:
    """Whatever is in them; and one attempt cannot write a stream as two types."""
    streams = open_streams()
    with streams.open_writer(slot, content_type) as writer:
        for chunk in chunks:
            writer.write(chunk)
    assert chunks_of(streams, slot) == chunks
    writers = AttemptWriters(
        Attempt("another", "attempt"),
        streams.runtime.open_channel,
        streams.runtime.store,
        streams.runtime.cache,
        streams.settings,
    )
    writers.writer(slot, content_type)
    with pytest.raises(ConfigurationError, match=f"open as {content_type}"):
        writers.writer(slot, "application/json")
    credentials = streams.runtime.cache.peek(slot)
    assert credentials is not None
    streams.runtime.cache.evict(credentials)
    with pytest.raises(ConfigurationError, match=f"has the content type '{content_type}'"):
        streams.open_writer(slot).append("json")


def test_merge_and_pipe_take_plain_iterables(open_streams: OpenStreams, slot: Slot) -> None:
    """merge counts; pipe yields each item on as it is written, and no sooner than asked."""
    streams = open_streams()
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    with streams.open_writer(slot) as writer:
        assert writer.merge(source()) == 5
        taken.clear()
        piped = writer.pipe(source())
        assert next(piped) == 0
        assert taken == [0]
        assert list(piped) == [1, 2, 3, 4]
        assert writer.merge([]) == 0
    assert chunks_of(streams, slot) == [*range(5), *range(5)]


def test_merge_and_pipe_take_async_iterables(open_streams: OpenStreams, slot: Slot) -> None:
    """From sync code on a loop of their own; inside a loop they are awaited, and merge says so."""
    streams = open_streams()
    writer = streams.open_writer(slot)

    async def source() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    assert writer.merge(source()) == 3

    async def inside() -> None:
        assert await writer.amerge(source()) == 3
        assert [item async for item in writer.apipe(source())] == [0, 1, 2]
        with pytest.raises(StreamError, match=r"await writer\.amerge"):
            writer.merge(source())

    asyncio.run(inside())
    writer.wait()
    assert chunks_of(streams, slot) == [0, 1, 2] * 3


def test_an_error_in_the_source_ends_the_merge_not_the_writer(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """What came before is durable, and writing goes on."""
    streams = open_streams()

    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the model is gone")

    with streams.open_writer(slot) as writer:
        with pytest.raises(OSError, match="the model is gone"):
            writer.merge(failing())
        writer.write(2)
    assert chunks_of(streams, slot) == [1, 2]


@pytest.mark.parametrize("how", ["merge", "pipe", "amerge"])
def test_an_oversized_chunk_through_merge_or_pipe_evicts_the_credentials(
    open_streams: OpenStreams, slot: Slot, how: str
) -> None:
    """As the reference does; a refused value of another kind does not, nor a direct write."""
    streams = open_streams(max_chunk_bytes=100)
    writer = streams.open_writer(slot)
    writer.append("warm")
    with pytest.raises(ChunkTooLarge):
        writer.write("x" * 200)
    with pytest.raises(InvalidChunk):
        writer.merge([object()])
    assert streams.runtime.cache.peek(slot) is not None

    async def source() -> AsyncIterator[str]:
        yield "ok"
        yield "x" * 200

    ways: dict[str, Callable[[], object]] = {
        "merge": lambda: writer.merge(["ok", "x" * 200]),
        "pipe": lambda: list(writer.pipe(["ok", "x" * 200])),
        "amerge": lambda: writer.merge(source()),
    }
    with pytest.raises(ChunkTooLarge):
        ways[how]()
    eventually(lambda: streams.stats().evictions == 1, "the eviction")
    writer.write("after")
    assert writer.wait().count == 3
    assert chunks_of(streams, slot) == ["warm", "ok", "after"]
    assert streams.stats().initializes == 2


def test_a_closed_stream_refuses_writers_with_its_end(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """The store's answer ends the writer; what it had accepted is counted."""
    streams = open_streams()
    writer = streams.open_writer(slot)
    writer.append(1)
    assert streams.close_stream(slot).closed == "CLOSED"
    writer.write(2)
    with pytest.raises(StreamClosed, match=r"has ended \(CLOSED\).*1 chunks") as raised:
        writer.wait()
    assert raised.value.unsent == 1
    with pytest.raises(StreamClosed):
        writer.write(3)
    assert chunks_of(streams, slot) == [1]


def _end(streams: Any, slot: Slot) -> int:
    return int(streams.runtime.store.head(slot).end)


def test_a_writer_of_another_content_type_is_refused_though_credentials_are_cached(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """The fleet's credentials do not say what the stream is made of; the store does."""
    streams = open_streams()
    with streams.open_writer(slot, "text/plain") as text:
        text.write("a")
    json_writer = streams.open_writer(slot)
    json_writer.write({"b": 1})
    with pytest.raises(ConfigurationError, match="is a stream of text/plain"):
        json_writer.wait(timeout=10)
    with streams.open_writer(slot, "text/plain") as text:
        text.write("c")
    assert streams.runtime.store.head(slot).end == 2
