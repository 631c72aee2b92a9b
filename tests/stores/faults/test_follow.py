"""Following: catch up, then live; a lost message or connection delays, never hangs or skips."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from celery_streams.contracts import Page
from celery_streams.errors import OffsetGone, StoreUnavailable, StreamNotFound
from celery_streams.slots import Slot
from celery_streams.stores.redis_async import AsyncRedisStore
from tests.servers import Proxy, ServerProcess, ValkeyProcess
from tests.servers.children import eventually
from tests.stores.faults.bench import Bench, Writer, unread
from tests.stores.faults.conftest import Open

Times = Callable[[int, int], int]
#: Seconds of silence after which followers look at the log. Long where nothing may be lost.
LONG = 60.0


class Following:
    """A follower in a thread; it follows again from its offset when the store is unavailable."""

    def __init__(self, bench: Bench, slot: Slot, offset: int = 0, idle: float = LONG) -> None:
        self.chunks: list[bytes] = []
        self.idles = 0
        self.failures = 0
        self.closed: str | None = None
        self.error: BaseException | None = None
        self._arguments = (bench, slot, offset, idle)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, timeout: float = 30.0) -> list[bytes]:
        """What arrived up to the end of the stream."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"still following after {len(self.chunks)} chunks"
        if self.error is not None:
            raise self.error
        return self.chunks

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.chunks) >= count or self.error, f"{count} chunks", every=0.001)

    def _run(self) -> None:
        bench, slot, offset, idle = self._arguments
        while True:
            try:
                at = offset + len(self.chunks)
                for page in bench.store.follow(slot, at, idle=idle):
                    self._take(page, offset)
                return
            except StoreUnavailable:
                self.failures += 1
                time.sleep(0.01)
            except BaseException as error:
                self.error = error
                return

    def _take(self, page: Page, offset: int) -> None:
        if page.entries:
            self.chunks += unread(page, offset + len(self.chunks))
        else:
            self.idles += 1
        if page.head is not None:
            self.closed = page.head.closed


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def subscribers(bench: Bench, slot: Slot) -> int:
    """How many connections listen to the stream's channel."""
    channel = bench.layout.live(slot)
    client: Any = bench.link.client
    if hasattr(client, "get_node_from_key"):
        client = client.get_redis_connection(client.get_node_from_key(channel))
    return int(client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1])


def wait_until_live(bench: Bench, slot: Slot, count: int = 1) -> None:
    eventually(lambda: subscribers(bench, slot) == count, f"{count} followers", every=0.001)


def test_a_follower_gets_what_there_is_then_what_comes_then_the_end(bench: Bench) -> None:
    """Without waiting for a look at the log: every wake-up arrives."""
    writer = bench.writer(bench.slot())
    writer.append(0, 1)
    following = Following(bench, writer.slot)
    following.wait_for(2)
    for number in range(2, 20):
        writer.append(number)
        following.wait_for(number + 1)
    writer.close()
    assert following.join() == numbers(20)
    assert (following.closed, following.idles) == ("CLOSED", 1)


def test_a_follower_may_come_before_the_stream_exists(bench: Bench) -> None:
    """Opening the stream wakes it."""
    slot = bench.slot()
    following = Following(bench, slot)
    wait_until_live(bench, slot)
    writer = bench.writer(slot)
    writer.append(0)
    following.wait_for(1)
    writer.close()
    assert following.join() == numbers(1)


def test_a_follower_of_a_closed_stream_ends_at_once(bench: Bench) -> None:
    """From the beginning, from the middle, and from behind the end."""
    writer = bench.writer(bench.slot())
    writer.append(0, 1)
    writer.append(2)
    writer.close()
    for offset, expected in ((0, 3), (1, 2), (3, 0), (9, 0)):
        following = Following(bench, writer.slot, offset)
        assert len(following.join()) == expected
        assert following.closed == "CLOSED"


def test_a_follower_that_starts_beyond_the_end_waits_for_its_offset(bench: Bench) -> None:
    """Chunks before it are not delivered, whatever batch they come in."""
    writer = bench.writer(bench.slot())
    writer.append(0)
    following = Following(bench, writer.slot, 4)
    wait_until_live(bench, writer.slot)
    writer.append(1, 2)
    writer.append(3, 4, 5)
    following.wait_for(2)
    writer.close()
    assert following.join() == [b"4", b"5"]


def test_silence_yields_an_empty_page(bench: Bench) -> None:
    """So that the caller can look at its own clock; also before the stream exists."""
    for slot in (bench.slot(), bench.writer(bench.slot()).slot):
        pages = bench.store.follow(slot, 0, idle=0.01)
        for _ in range(3):
            assert next(pages).entries == ()
        pages.close()  # type: ignore[attr-defined]


def test_a_deleted_stream_ends_its_followers_with_an_error(bench: Bench) -> None:
    """At once, and not by silence."""
    writer = bench.writer(bench.slot())
    writer.append(0)
    following = Following(bench, writer.slot)
    following.wait_for(1)
    wait_until_live(bench, writer.slot)
    bench.store.delete(writer.slot)
    with pytest.raises(StreamNotFound, match="deleted"):
        following.join()


def test_a_follower_before_the_trim_point_gets_offset_gone(url: str, open_bench: Open) -> None:
    """It is told where the stream goes on."""
    bench = open_bench(url, max_chunks=5)
    writer = bench.writer(bench.slot())
    for number in range(20):
        writer.append(number)
    with pytest.raises(OffsetGone) as caught:
        Following(bench, writer.slot, 3).join()
    assert caught.value.first == 15


def test_a_follower_leaves_no_subscription_behind(bench: Bench) -> None:
    """Whether it reached the end or was let go of."""
    writer = bench.writer(bench.slot())
    pages = bench.store.follow(writer.slot, 0, idle=0.01)
    next(pages)
    assert subscribers(bench, writer.slot) == 1
    pages.close()  # type: ignore[attr-defined]
    eventually(lambda: subscribers(bench, writer.slot) == 0, "nobody listens")


def test_followers_killed_at_the_server_go_on_where_they_were(single: Bench, times: Times) -> None:
    """CLIENT KILL TYPE PUBSUB while chunks are written: each arrives once."""
    writer = single.writer(single.slot())
    followers = [Following(single, writer.slot) for _ in range(3)]
    for number in range(times(100, 3000)):
        writer.append(number)
        if number % 10 == 5:
            single.link.client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
    writer.close()
    for following in followers:
        assert following.join() == numbers(writer.seq)
    assert sum(following.failures for following in followers) > 0


def test_a_lost_message_delays_and_never_hangs(single: Bench) -> None:
    """The message of a chunk, and even that of the end, is missed: the log is looked at."""
    writer = single.writer(single.slot())
    following = Following(single, writer.slot, idle=0.2)
    wait_until_live(single, writer.slot)
    with unpublished(single):
        writer.append(0)
    following.wait_for(1)
    with unpublished(single):
        writer.append(1)
    writer.append(2)  # does not continue where the follower stands: it reads the log
    following.wait_for(3)
    with unpublished(single):
        writer.close()
    assert following.join() == numbers(3)


def test_a_gap_sends_a_follower_to_the_log_at_once(single: Bench) -> None:
    """It does not wait for silence."""
    writer = single.writer(single.slot())
    following = Following(single, writer.slot)
    wait_until_live(single, writer.slot)
    with unpublished(single):
        writer.append(0)
    writer.append(1)
    following.wait_for(2)
    writer.close()
    assert following.join() == numbers(2)


@contextmanager
def unpublished(bench: Bench) -> Iterator[None]:
    """Within the block, messages reach nobody: the script's SPUBLISH goes elsewhere."""
    layout = bench.layout
    live = layout.live
    object.__setattr__(bench.store._commands, "layout", _Mute(layout))
    try:
        yield
    finally:
        object.__setattr__(bench.store._commands, "layout", layout)
    assert layout.live == live


class _Mute:
    def __init__(self, layout: Any) -> None:
        self._layout = layout

    def live(self, slot: Slot) -> str:
        return str(self._layout.base(slot)) + "nobody"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)


def test_connections_cut_at_random_bytes_while_reading_lose_and_repeat_nothing(
    server: ServerProcess, open_bench: Open, single: Bench, times: Times
) -> None:
    """Catching up and live, sync: every chunk exactly once."""
    chance = random.Random(11)
    with Proxy(server.port) as proxy:
        through = open_bench(server.url_for(port=proxy.port))
        writer = single.writer(single.slot())
        following = Following(through, writer.slot)
        for number in range(times(200, 5000)):
            writer.append(number)
            if number % 8 == 0:
                proxy.cut_after(chance.randrange(300), "down")
                following.wait_for(max(0, number - 5))
        writer.close()
        assert following.join() == numbers(writer.seq)
        assert following.failures > times(5, 100)


def test_a_stalled_connection_is_given_up_and_nothing_is_missed(
    server: ServerProcess, open_bench: Open, single: Bench
) -> None:
    """The channel falls silent without an error: the look at the log notices."""
    with Proxy(server.port) as proxy:
        through = open_bench(server.url_for(port=proxy.port), socket_timeout=0.3)
        writer = single.writer(single.slot())
        following = Following(through, writer.slot, idle=0.2)
        wait_until_live(single, writer.slot)
        proxy.stall("down")
        writer.append(0)
        eventually(lambda: following.failures, "the follower notices")
        proxy.resume("down")
        proxy.cut()
        writer.close()
        assert following.join() == numbers(1)


def test_a_server_killed_and_restarted_while_reading_loses_nothing(
    open_bench: Open, times: Times
) -> None:
    """With the append-only file; followers go on at their offset."""
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        bench = open_bench(server.url)
        writer = bench.writer(bench.slot())
        following = Following(bench, writer.slot)
        for number in range(times(3, 25)):
            writer.insist(number)
            following.wait_for(number + 1)
            server.kill()
            server.start()
        writer.close()
        assert following.join() == numbers(writer.seq)


def test_asyncio_followers_get_every_chunk_once(bench: Bench) -> None:
    """Ten at once, from different offsets, some before the stream exists."""
    slot = bench.slot()

    async def follow(store: AsyncRedisStore, offset: int) -> list[bytes]:
        chunks: list[bytes] = []
        async for page in store.follow(slot, offset, idle=LONG):
            if page.entries:
                chunks += unread(page, offset + len(chunks))
        return chunks

    async def use(store: AsyncRedisStore) -> None:
        tasks = [asyncio.create_task(follow(store, n)) for n in range(10)]
        await asyncio.to_thread(wait_until_live, bench, slot, 10)
        writer = bench.writer(slot)
        for number in range(0, 60, 3):
            await asyncio.to_thread(writer.append, number, number + 1, number + 2)
        await asyncio.to_thread(writer.close)
        for offset, task in enumerate(tasks):
            assert await asyncio.wait_for(task, 20) == numbers(60)[offset:]

    bench.with_async_store(use)


def test_a_cancelled_asyncio_follower_leaves_no_connection_behind(
    single: Bench, times: Times
) -> None:
    """Whenever it is cancelled: connecting, subscribing, reading, waiting."""
    slot = single.slot()
    writer = single.writer(slot)
    clients = single.link.client
    writer.append(0)
    # What may be left: what is there now, and the store's pool.
    allowed = len(clients.client_list()) + 2

    async def follow(store: AsyncRedisStore) -> None:
        async for _ in store.follow(slot, 0, idle=LONG):
            pass

    async def use(store: AsyncRedisStore) -> None:
        for number in range(times(40, 1000)):
            task = asyncio.create_task(follow(store))
            await asyncio.sleep(0.0002 * (number % 40))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(wait_until_live, single, slot, 0)
        await asyncio.to_thread(
            eventually, lambda: len(clients.client_list()) <= allowed, "the connections are closed"
        )

    single.with_async_store(use)


def test_connections_cut_at_random_bytes_under_asyncio_lose_and_repeat_nothing(
    server: ServerProcess, open_bench: Open, single: Bench, times: Times
) -> None:
    """As for the sync store."""
    chance = random.Random(12)
    writer = single.writer(single.slot())
    chunks: list[bytes] = []

    async def follow(store: AsyncRedisStore) -> None:
        while True:
            try:
                async for page in store.follow(writer.slot, len(chunks), idle=LONG):
                    if page.entries:
                        chunks.extend(unread(page, len(chunks)))
                return
            except StoreUnavailable:
                await asyncio.sleep(0.005)

    async def write(proxy: Proxy) -> None:
        for number in range(times(200, 5000)):
            await asyncio.to_thread(writer.append, number)
            if number % 8 == 0:
                proxy.cut_after(chance.randrange(300), "down")
        await asyncio.to_thread(writer.close)

    with Proxy(server.port) as proxy:
        through = open_bench(server.url_for(port=proxy.port))

        async def use(store: AsyncRedisStore) -> None:
            await asyncio.wait_for(asyncio.gather(follow(store), write(proxy)), 60)

        through.with_async_store(use)
    assert chunks == numbers(writer.seq)


def test_many_writers_and_followers_agree(bench: Bench, times: Times) -> None:
    """Each follower sees the same chunks in the same order, and each writer's in its own."""
    slot = bench.slot()
    followers = [Following(bench, slot) for _ in range(3)]
    writers = [bench.writer(slot) for _ in range(4)]
    count = times(30, 500)

    def write(name: int, writer: Writer) -> None:
        for number in range(count):
            writer.append([name, number])

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writers[0].close()
    logged = bench.values(slot)
    assert [following.join() for following in followers] == [logged] * 3
    for name in range(4):
        own = [chunk for chunk in logged if chunk.startswith(b"[%d," % name)]
        assert own == [b"[%d,%d]" % (name, number) for number in range(count)]
