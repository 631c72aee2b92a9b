"""``aread`` as a web application uses it: the public objects, an event loop, a real worker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams import OffsetGone, ReadTimeout, Slot, StreamNotFound
from celery_streams.contracts import Offset
from celery_streams.reading.reader import AsyncReader
from tests.lifecycle.client import Client
from tests.lifecycle.loops import in_loop
from tests.reading.readers import wait_for_listeners
from tests.servers import ValkeyProcess
from tests.workers import worker

STEPS = "tests.lifecycle.step_app"


@pytest.fixture(scope="module")
def client(lifecycle_server: ValkeyProcess) -> Iterator[Client]:
    """A client of a worker with room for tasks that wait for the test."""
    with (
        worker(STEPS, lifecycle_server, queue="aread", concurrency=4) as running,
        Client.of(running) as client,
    ):
        client.app.conf.task_default_queue = "aread"
        yield client


async def everything(reader: AsyncReader) -> list[Any]:
    """What is left of a stream, to its end."""
    async with reader:
        return [chunk async for chunk in reader]


async def take(reader: AsyncReader, count: int) -> list[Any]:
    """The next chunks."""
    return [await anext(reader) for _ in range(count)]


async def in_step(reader: AsyncReader, folder: Path) -> list[Any]:
    """To the end, and only a chunk that has arrived lets the task write the next one."""
    numbers = []
    async with reader:
        async for number in reader:
            numbers.append(number)
            (folder / str(number)).touch()
    return numbers


async def until_listening(server: ValkeyProcess, run_id: str, count: int = 1) -> None:
    """Wait until so many readers of the run wait for what is new."""
    await asyncio.to_thread(wait_for_listeners, server, count, Slot.run(run_id))


def test_chunks_arrive_while_the_task_writes(client: Client, tmp_path: Path) -> None:
    """Live: the task waits for each chunk to be read before it writes the next."""

    async def main() -> None:
        result = client.send("in_step", str(tmp_path), 50)
        reader = client.streams.aread(result.id, timeout=20)
        assert await in_step(reader, tmp_path) == list(range(50))
        assert (reader.offset, reader.closed) == (50, "SUCCESS")

    in_loop(client.streams, main())


def test_a_reader_made_before_its_run_misses_nothing(
    client: Client, lifecycle_server: ValkeyProcess
) -> None:
    """A page may listen before the task is even sent."""

    async def main() -> None:
        run_id = uuid.uuid4().hex
        reading = asyncio.create_task(everything(client.streams.aread(run_id, timeout=20)))
        await until_listening(lifecycle_server, run_id)
        client.send("count", 500, task_id=run_id)
        assert await reading == [[run_id, number] for number in range(500)]

    in_loop(client.streams, main())


def test_a_cancelled_reader_is_resumed_at_its_offset(
    client: Client, lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """Cancelled while it waits, in another loop or the same: no chunk is lost or repeated."""
    result = client.send("in_step", str(tmp_path), 20)
    seen: list[int] = []

    async def disconnected() -> AsyncReader:
        reader = client.streams.aread(result.id, timeout=20)

        async def follow() -> None:
            async for number in reader:
                seen.append(number)
                if number < 9:
                    (tmp_path / str(number)).touch()

        following = asyncio.create_task(follow())
        while len(seen) < 10:
            await asyncio.sleep(0)
        await until_listening(lifecycle_server, result.id)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await until_listening(lifecycle_server, result.id, 0)
        return reader

    first = in_loop(client.streams, disconnected())
    assert seen == list(range(10))
    assert (first.offset, first.closed) == (10, None)
    (tmp_path / "9").touch()

    async def back() -> None:
        reader = client.streams.aread(result.id, offset=first.offset, timeout=20)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(reader)
        assert await in_step(reader, tmp_path) == list(range(10, 20))

    in_loop(client.streams, back())


def test_offsets_are_absolute_from_the_end_or_now(
    client: Client, lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """Of a stream that has ended, and of one that goes on."""

    async def ended() -> None:
        run_id, _ = client.run("count", 10)
        client.end(run_id)
        cases: list[tuple[Offset, int]] = [
            (7, 7),
            (-3, 7),
            (-10, 0),
            (-99, 0),
            (10, 10),
            ("now", 10),
        ]
        for offset, first in cases:
            reader = client.streams.aread(run_id, offset=offset, timeout=20)
            assert [number for _, number in await everything(reader)] == list(range(first, 10))
            assert reader.closed == "SUCCESS"

    async def live() -> None:
        result = client.send("in_step", str(tmp_path), 10)
        async with client.streams.aread(result.id, timeout=20) as ahead:
            for number in range(4):
                assert await anext(ahead) == number
                if number < 3:
                    (tmp_path / str(number)).touch()
        readers = {
            offset: client.streams.aread(result.id, offset=offset, timeout=20)
            for offset in ("now", -1, -3, 2)
        }
        reading = [asyncio.create_task(everything(reader)) for reader in readers.values()]
        await until_listening(lifecycle_server, result.id, len(readers))
        for number in range(3, 10):
            (tmp_path / str(number)).touch()
        starts = [numbers[0] for numbers in await asyncio.gather(*reading)]
        assert starts == [4, 3, 1, 2]
        assert all(numbers.result()[-1] == 9 for numbers in reading)

    in_loop(client.streams, ended())
    in_loop(client.streams, live())


def test_silence_is_a_timeout_that_can_be_resumed(client: Client, tmp_path: Path) -> None:
    """Of a task that is slow, and of a run nobody knows; the same reader may go on."""

    async def main() -> None:
        with pytest.raises(ReadTimeout) as unknown:
            await anext(client.streams.aread("nobody", timeout=0.3))
        assert unknown.value.offset == 0
        result = client.send("in_step", str(tmp_path), 3)
        async with client.streams.aread(result.id, timeout=20) as patient:
            assert await anext(patient) == 0
        async with client.streams.aread(result.id, timeout=0.3) as reader:
            assert await anext(reader) == 0
            with pytest.raises(ReadTimeout) as slow:
                await anext(reader)
            assert slow.value.offset == reader.offset == 1
            (tmp_path / "0").touch()
            (tmp_path / "1").touch()
            (tmp_path / "2").touch()
            resumed = client.streams.aread(result.id, offset=slow.value.offset, timeout=20)
            assert await everything(resumed) == [1, 2]
            assert await everything(reader) == [1, 2]

    in_loop(client.streams, main())


def test_many_readers_share_one_event_loop(client: Client, tmp_path: Path) -> None:
    """Several runs, several readers each, all live: everybody gets all of their own stream."""
    runs, readers, to = 4, 5, 30

    async def main() -> None:
        reading = []
        for number in range(runs):
            folder = tmp_path / str(number)
            folder.mkdir()
            result = client.send("in_step", str(folder), to)
            reading += [
                in_step(client.streams.aread(result.id, timeout=20), folder) for _ in range(readers)
            ]
        long = client.send("count", 5000)
        reading += [everything(client.streams.aread(long.id, timeout=20)) for _ in range(readers)]
        received = await asyncio.gather(*reading)
        assert received[:-readers] == [list(range(to))] * (runs * readers)
        assert received[-readers:] == [[[long.id, number] for number in range(5000)]] * readers

    in_loop(client.streams, main())


def test_a_run_without_the_stream_ends_its_reader(client: Client) -> None:
    """Nothing will ever come: no chunks and no timeout, but the run's state."""

    async def main() -> None:
        run_id, _ = client.run("count", 1)
        reader = client.streams.aread(run_id, "other", timeout=20)
        assert await everything(reader) == []
        assert reader.closed == "SUCCESS"
        with pytest.raises(StreamNotFound):
            client.streams.head(run_id, "other")

    in_loop(client.streams, main())


def test_a_stream_that_is_deleted_is_not_found(client: Client, tmp_path: Path) -> None:
    """Its reader is told, rather than left waiting."""

    async def main() -> None:
        result = client.send("wait_for", str(tmp_path / "go"), 3)
        async with client.streams.aread(result.id, timeout=20) as reader:
            assert await take(reader, 3) == [0, 1, 2]
            assert client.streams.runtime.store.delete(Slot.run(result.id))
            with pytest.raises(StreamNotFound, match="deleted or has expired"):
                await anext(reader)
        (tmp_path / "go").touch()
        await asyncio.to_thread(result.get, timeout=30)

    in_loop(client.streams, main())


def test_the_readers_of_a_session_follow_it_from_run_to_run(client: Client) -> None:
    """``session.out`` has what each agent wrote, live; its offsets and end are the session's."""
    session = client.streams.session(f"session-{uuid.uuid4().hex}")

    def deltas(chunks: list[Any]) -> list[str]:
        return [chunk["delta"] for chunk in chunks if "delta" in chunk]

    async def main() -> None:
        async with session.out.aread(timeout=20) as reader:
            for turn in ("first", "second"):
                result = client.send("agent", session.session_id, [turn, "answer"])
                # The starts of turn, step and text, two deltas, the ends of text and turn.
                assert deltas(await take(reader, 7)) == [turn, "answer"]
                await asyncio.to_thread(result.get, timeout=30)
            assert reader.offset == 14
        with pytest.raises(ReadTimeout) as silence:
            await everything(session.out.aread(offset="now", timeout=0.3))
        assert silence.value.offset == 14
        resumed = asyncio.create_task(everything(session.out.aread(offset=11, timeout=20)))
        last = asyncio.create_task(everything(session.out.aread(offset=-4, timeout=20)))
        asked = asyncio.create_task(everything(session.inbox.aread(timeout=20)))
        await asyncio.to_thread(session.inbox.append, "question")
        for channel in (session.inbox, session.out):
            await asyncio.to_thread(channel.close)
        assert deltas(await resumed) == ["answer"]
        assert deltas(await last) == ["second", "answer"]
        assert await asked == ["question"]

    in_loop(client.streams, main())


def test_a_trimmed_offset_is_gone_and_a_lost_worker_ends_the_reader(
    lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """With ``max_chunks`` and a short ``orphan_timeout``."""
    limits = {
        "CELERY_STREAMS_MAX_CHUNKS": "50",
        "CELERY_STREAMS_BATCH_CHUNKS": "10",
        "CELERY_STREAMS_ORPHAN_TIMEOUT": "1.5",
    }

    async def trimmed(client: Client) -> None:
        run_id, _ = client.run("count", 500)
        with pytest.raises(OffsetGone) as gone:
            await everything(client.streams.aread(run_id, timeout=20))
        assert 440 <= gone.value.first <= 450
        for offset, first in ((gone.value.first, gone.value.first), (-40, 460), (-500, None)):
            reader = client.streams.aread(run_id, offset=offset, timeout=20)
            numbers = [number for _, number in await everything(reader)]
            assert numbers == list(range(first or gone.value.first, 500))

    async def lost(client: Client) -> None:
        result = client.send("in_step", str(tmp_path), 5)
        silent = asyncio.create_task(
            everything(client.streams.aread(result.id, "silent", timeout=30))
        )
        reader = client.streams.aread(result.id, timeout=30)
        async with reader:
            assert await anext(reader) == 0
            (tmp_path / "0").touch()
            assert await anext(reader) == 1
            await asyncio.to_thread(client.worker.kill)
            assert await everything(reader) == []
            assert (reader.offset, reader.closed) == (2, "LOST")
        assert await silent == []

    with (
        worker(STEPS, lifecycle_server, queue="short", concurrency=1, env=limits) as running,
        Client.of(running, orphan_timeout=1.5) as client,
    ):
        client.app.conf.task_default_queue = "short"
        in_loop(client.streams, trimmed(client))
        in_loop(client.streams, lost(client))
