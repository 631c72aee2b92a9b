"""``pipe`` and ``apipe`` do the same, whatever happens on either side of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest

from celery_streams import ChunkTooLarge, Slot, Streams
from celery_streams.errors import StreamFenced
from celery_streams.writing.writer import Writer
from tests.lifecycle.client import chunks_of
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

#: ``pump(writer, source, on_item)``: pipe everything, calling ``on_item`` with each item that
#: comes out; as soon as that returns false, stop and close the pipe.
Pump = Callable[[Writer, Iterator[Any], Callable[[Any], bool]], None]


def _pump(writer: Writer, source: Iterator[Any], on_item: Callable[[Any], bool]) -> None:
    with closing(writer.pipe(source)) as piped:  # type: ignore[type-var]
        for item in piped:
            if not on_item(item):
                return


def _apump(writer: Writer, source: Iterator[Any], on_item: Callable[[Any], bool]) -> None:
    async def items() -> AsyncIterator[Any]:
        for item in source:
            await asyncio.sleep(0)
            yield item

    async def consume() -> None:
        async with aclosing(writer.apipe(items())) as piped:  # type: ignore[type-var]
            async for item in piped:
                if not on_item(item):
                    return

    asyncio.run(consume())


@pytest.fixture(params=[_pump, _apump], ids=["pipe", "apipe"])
def pump(request: pytest.FixtureRequest) -> Pump:
    """The sync and the async one in turn."""
    result: Pump = request.param
    return result


@pytest.fixture
def slot() -> Slot:
    """A stream nobody has used."""
    return Slot.run(uuid.uuid4().hex)


@pytest.fixture
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    """Streams that refuse chunks over 100 bytes."""
    streams = Streams(url=valkey.url, secret="test secret", max_chunk_bytes=100)
    yield streams
    streams.close()


def _always(_: Any) -> bool:
    return True


def test_a_source_that_fails_ends_the_pipe_and_nothing_else(
    streams: Streams, slot: Slot, pump: Pump
) -> None:
    """What came before it is durable; the writer is good, so its credentials stay."""

    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("the source is gone")

    writer = streams.open_writer(slot)
    with pytest.raises(OSError, match="the source is gone"):
        pump(writer, source(), _always)
    writer.append("after")
    assert chunks_of(streams, slot) == [0, 1, 2, "after"]
    assert (streams.stats().evictions, streams.stats().initializes) == (0, 1)


def test_a_consumer_that_stops_half_way_leaves_the_rest_unread(
    streams: Streams, slot: Slot, pump: Pump
) -> None:
    """An item is written before it is passed on, so the last one seen is there."""
    source, writer = iter(range(10)), streams.open_writer(slot)
    pump(writer, source, lambda item: bool(item < 4))
    assert next(source) == 5
    assert writer.wait().count == 5
    assert chunks_of(streams, slot) == [0, 1, 2, 3, 4]
    assert (streams.stats().evictions, streams.stats().initializes) == (0, 1)


def test_a_revocation_half_way_is_invisible(streams: Streams, slot: Slot, pump: Pump) -> None:
    """Refused, evicted, initialized once, sent again."""
    writer = streams.open_writer(slot)

    def revoke(item: Any) -> bool:
        if item == 5:
            writer.flush()
            assert streams.revoke(slot.owner, slot.key) == 1
        return True

    pump(writer, iter(range(10)), revoke)
    assert writer.wait().count == 10
    assert chunks_of(streams, slot) == list(range(10))
    assert (streams.stats().evictions, streams.stats().initializes) == (1, 2)


def test_an_oversized_item_evicts_the_credentials(streams: Streams, slot: Slot, pump: Pump) -> None:
    """As every failure that ends a pipe's writer does, in the process and in Redis."""
    writer = streams.open_writer(slot)
    writer.append("warm")
    with pytest.raises(ChunkTooLarge):
        pump(writer, iter(["ok", "x" * 200]), _always)
    assert streams.runtime.cache.peek(slot) is None
    assert streams.stats().evictions == 1
    writer.append("after")
    assert chunks_of(streams, slot) == ["warm", "ok", "after"]
    assert streams.stats().initializes == 2


def test_what_others_have_renewed_is_not_evicted(
    streams: Streams, valkey: ValkeyProcess, slot: Slot, pump: Pump
) -> None:
    """Compare-and-delete: this process's old credentials go, the fleet's new ones stay.

    ::

        time 0  This process has credentials; they are revoked.
        time 1  Another process writes: it initializes and puts new ones into Redis.
        time 2  A pipe of this process fails and evicts the old ones it still has.
    """
    writer = streams.open_writer(slot)
    writer.append(0)
    streams.revoke(slot.owner, slot.key)
    others = Streams(url=valkey.url, secret="test secret")
    others.open_writer(slot).append(1)
    new = others.runtime.cache.peek(slot)
    with pytest.raises(ChunkTooLarge):
        pump(writer, iter(["x" * 200]), _always)
    assert streams.runtime.cache.peek(slot) is None
    assert streams.runtime.cache.get(slot) == new
    assert writer.append(2) == 2
    assert streams.stats().initializes + others.stats().initializes == 2
    others.close()


def test_a_writer_that_has_ended_ends_the_pipe_with_its_error(
    streams: Streams, slot: Slot, pump: Pump
) -> None:
    """Fenced: the item in hand is not passed on, and the credentials are evicted."""
    writer = streams.open_writer(slot)
    writer.append(0)
    failure = StreamFenced("a later attempt has taken over")
    store = streams.runtime.store
    real = store.append_many
    store.append_many = lambda appends: [failure] * len(appends)  # type: ignore[method-assign]
    seen: list[Any] = []

    def once_ended(item: Any) -> bool:
        seen.append(item)
        if item == 1:
            eventually(lambda: writer._channel.error is not None, "the end of the writer")
        return True

    with pytest.raises(StreamFenced, match="taken over"):
        pump(writer, iter([1, 2, 3]), once_ended)
    store.append_many = real  # type: ignore[method-assign]
    assert seen == [1]
    assert streams.runtime.cache.peek(slot) is None
    assert chunks_of(streams, slot) == [0]
