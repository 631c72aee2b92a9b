"""Readers while connections break and servers die: every chunk exactly once, in order."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams.errors import ConfigurationError, StoreUnavailable
from celery_streams.reading import position
from celery_streams.reading.reader import AsyncReader
from celery_streams.slots import Slot
from tests.conftest import SettingsFor
from tests.reading.conftest import Connect
from tests.reading.readers import read, wait_for_listeners
from tests.servers import Proxy, ServerProcess, ValkeyProcess
from tests.servers.children import eventually
from tests.stores.contract.backend import SLOT, Backend, Background, Hand

Times = Callable[[int, int], int]


def numbers_to(writer: Hand, count: int, first: int = 0) -> None:
    """Append the numbers from ``first`` on, in batches of one to three; then close."""
    at = first
    while at < count:
        size = min(1 + at % 3, count - at)
        writer.append(*range(at, at + size))
        at += size
    writer.close()


def test_connections_cut_at_random_bytes_lose_and_repeat_nothing(
    writing: Backend, connect_to: Connect, server: ServerProcess, times: Times
) -> None:
    """In the middle of a page, a message or a handshake: reading goes on where it was."""
    chance = random.Random(4711)
    count = 0
    with Proxy(server.port) as proxy:
        reader = read(connect_to(server.url_for(port=proxy.port)), recheck=0.02)
        writer = writing.writer()
        chunks = Background(list, reader)
        for _ in range(times(10, 2000)):
            cut = proxy.cut_after(chance.randint(1, 600), chance.choice(("up", "down")))
            deadline = time.monotonic() + 20
            # Now and then long enough that the reader asks: live, it only listens.
            while not cut.wait(0.05 if count % 10 == 0 else 0.005):
                assert time.monotonic() < deadline, "the reader sends and receives"
                writer.append(count)
                count += 1
        writer.close()
        assert chunks.result() == list(range(count))


def test_killed_subscriptions_are_made_again(
    writing: Backend, reading: Backend, server: ServerProcess, times: Times
) -> None:
    """CLIENT KILL TYPE PUBSUB, over and over, with a look at the log much too far away to help."""
    writer = writing.writer()
    chunks = Background(list, read(reading, recheck=60, timeout=100))
    rounds = times(10, 500)
    for number in range(rounds):
        wait_for_listeners(server)
        server.client().execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
        writer.append(number)
    writer.close()
    assert chunks.result(20) == list(range(rounds))


def test_a_stalled_connection_delays_and_never_hangs(
    writing: Backend, connect_to: Connect, server: ServerProcess
) -> None:
    """Nothing arrives, though the connections stay open; afterwards nothing is missing."""
    with Proxy(server.port) as proxy:
        backend = connect_to(server.url_for(port=proxy.port), socket_timeout=0.3)
        writer = writing.writer()
        writer.append(0)
        chunks = Background(list, read(backend, recheck=0.2))
        wait_for_listeners(server)
        for number in (1, 2, 3):
            proxy.stall("down")
            writer.append(number)
            made = proxy.connections
            eventually(lambda made=made: proxy.connections > made, "the reader connects anew")
            proxy.resume("down")
        writer.close()
        assert chunks.result(10) == [0, 1, 2, 3]


def test_a_server_killed_and_restarted_loses_and_repeats_nothing(
    connect_to: Connect, times: Times
) -> None:
    """SIGKILL while reading, with an append-only file that has what was acknowledged."""
    rounds = times(3, 50)
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        reader = read(connect_to(server.url), timeout=30)
        writer = connect_to(server.url).writer()
        chunks = Background(list, reader)
        for number in range(rounds):
            writer.insist(number * 2)
            server.kill()
            server.start()
            writer.insist(number * 2 + 1)
        writer.close()
        assert chunks.result() == list(range(rounds * 2))


def test_a_store_that_stays_away_is_an_error_after_the_timeout(connect_to: Connect) -> None:
    """It says where to resume; and resuming works once the server is back."""
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        backend = connect_to(server.url)
        writer = backend.writer()
        writer.append("a", "b")
        reader = read(backend, timeout=0.6)
        assert [next(reader), next(reader)] == ["a", "b"]
        server.kill()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=rf"{SLOT}.*Resume with offset=2"):
            next(reader)
        assert 0.5 <= time.monotonic() - start < 3
        server.start()
        writer.insist("c")
        writer.close()
        assert list(read(backend, offset=reader.offset)) == ["c"]


def test_a_reader_without_a_timeout_does_not_wait_for_a_dead_store_for_ever(
    connect_to: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence of a stream may last; a store that cannot be reached is given up."""
    monkeypatch.setattr(position, "OUTAGE_PATIENCE", 0.4)
    with ValkeyProcess() as server:
        backend = connect_to(server.url)
        backend.writer().append("a")
        reader = read(backend, timeout=None)
        assert next(reader) == "a"
        server.kill()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            next(reader)
        assert time.monotonic() - start < 3


def test_what_no_waiting_can_repair_is_an_error_at_once(connect_to: Connect) -> None:
    """A wrong password, and a user who may not read: with all of the timeout left."""
    users = {"limited": ">secret ~other* &other* +@all"}
    with ValkeyProcess(requirepass="right", users=users) as server:
        for url in (
            server.url_for("", "wrong"),
            server.url_for("nobody", "secret"),
            server.url_for("limited", "secret"),
        ):
            start = time.monotonic()
            with pytest.raises(ConfigurationError) as refused:
                next(read(connect_to(url), timeout=60))
            assert time.monotonic() - start < 3
            assert "secret" not in str(refused.value)
            assert "wrong" not in str(refused.value)


def test_readers_that_start_with_their_writers_miss_no_first_chunk(
    connect: Connect, times: Times
) -> None:
    """dify #40948: readers that subscribed at the end of a stream that had already begun lost its
    first events in 55 % of runs under 8 concurrent requests."""
    runs, rounds = 8, times(10, 500)
    writers = [connect() for _ in range(runs)]
    readers = [connect() for _ in range(runs)]
    for round_ in range(rounds):
        slots = [Slot.run(f"run-{round_}-{number}") for number in range(runs)]
        together = threading.Barrier(2 * runs)

        def write(backend: Backend, slot: Slot, together: threading.Barrier = together) -> None:
            together.wait(20)
            numbers_to(backend.writer(slot), 6)

        def read_all(
            backend: Backend, slot: Slot, together: threading.Barrier = together
        ) -> list[Any]:
            together.wait(20)
            return list(read(backend, slot, recheck=60, timeout=100))

        at_work = [Background(write, *each) for each in zip(writers, slots, strict=True)]
        found = [Background(read_all, *each) for each in zip(readers, slots, strict=True)]
        for each in at_work:
            each.result(20)
        assert [each.result(20) for each in found] == [list(range(6))] * runs


@pytest.mark.parametrize("where", ["waiting", "between chunks"])
def test_cancelling_the_task_that_reads_releases_the_connection(
    server: ServerProcess, settings_for: SettingsFor, where: str, times: Times
) -> None:
    """Whatever it was doing; and the store works on."""

    async def scenario(backend: Backend) -> None:
        assert backend.loop is not None
        for _ in range(times(5, 200)):
            got_one = asyncio.Event()

            async def consume(got_one: asyncio.Event = got_one) -> None:
                reading: AsyncReader[Any] = AsyncReader(backend.loop.inner, SLOT, recheck=60)
                async with reading as reader:
                    async for _ in reader:
                        got_one.set()
                        if where == "between chunks":
                            await asyncio.Event().wait()

            task = asyncio.create_task(consume())
            await got_one.wait()
            if where == "waiting":
                await asyncio.to_thread(wait_for_listeners, server)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_for_listeners, server, 0)
            head = await backend.loop.inner.head(SLOT)
            assert head.end == 1

    with Backend(settings_for(server.url), "asyncio") as backend:
        assert backend.loop is not None
        backend.writer().append("a")
        before = len(server.client().client_list())
        backend.loop.run(scenario(backend))
        assert len(server.client().client_list()) <= before + 1
