"""``python -m benchmarks.s2 [--quick]``: chunks to S2, beside the SDK's own ways to get them there.

All of them write the same chunks to one stream each, on one s2-lite in memory, one after the
other, in turns; a record of the SDK is a chunk, one of ours a batch of them. The latency is from
before a chunk is handed over until a follower in another thread has it. Then the same again with
s2-lite 50 ms away, there and back (``far``), and a chunk every 20 ms: before the one before it is
acknowledged. ``BENCH_JSON=file`` writes the figures as JSON too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2_sdk import AppendInput, Record, S2Stream, SeqNum

from benchmarks.figures import Figure, at_least, show, write_json
from benchmarks.stage import CHUNK, CHUNK_JSON, own_server
from celery_streams import Streams
from celery_streams.settings import StreamsSettings
from celery_streams.stores.s2.address import parse_s2_address
from celery_streams.stores.s2.client import Clients
from tests.s2.servers import S2Lite
from tests.servers import Distance

#: Records of one append of the SDK's session: as many as S2 takes.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; seconds between two chunks whose latency is taken."""

    chunks: int = 200_000
    single: int = 300
    latencies: int = 200
    rounds: int = 3
    pause: float = 0.05


#: With every byte on its way for half of this, in each direction, seconds.
ROUND_TRIP = 0.05
FAR = Sizes(single=50, pause=0.02)
QUICK = Sizes(2000, 20, 20, 1)


def ours(streams: Streams, count: int) -> float:
    """Chunks a second of ``write()`` and ``wait()``."""
    with streams.write_to(uuid.uuid4().hex, create=True) as writer:
        writer.append(CHUNK)
        start = time.perf_counter()
        for _ in range(count):
            writer.write(CHUNK)
        writer.wait()
        return count / (time.perf_counter() - start)


def ours_one_by_one(streams: Streams, count: int) -> float:
    """Chunks a second, waiting for each."""
    with streams.write_to(uuid.uuid4().hex, create=True) as writer:
        writer.append(CHUNK)
        start = time.perf_counter()
        for _ in range(count):
            writer.append(CHUNK)
        return count / (time.perf_counter() - start)


async def session(stream: S2Stream, count: int) -> float:
    """Chunks a second of the SDK's append session, in the largest batches there are."""
    start = time.perf_counter()
    async with stream.append_session() as session:
        for at in range(0, count, _BATCH):
            size = min(_BATCH, count - at)
            await session.submit(AppendInput([Record(CHUNK_JSON) for _ in range(size)]))
    return count / (time.perf_counter() - start)


async def producer(stream: S2Stream, count: int) -> float:
    """Chunks a second of the SDK's producer, which makes the batches itself."""
    start = time.perf_counter()
    async with stream.producer() as producer:
        for _ in range(count):
            await producer.submit(Record(CHUNK_JSON))
    return count / (time.perf_counter() - start)


async def one_by_one(stream: S2Stream, count: int) -> float:
    """Chunks a second, an append each."""
    start = time.perf_counter()
    for _ in range(count):
        await stream.append(AppendInput([Record(CHUNK_JSON)]))
    return count / (time.perf_counter() - start)


def our_latencies(streams: Streams, sizes: Sizes) -> list[float]:
    """Seconds from ``write()`` to a reader, each."""
    run_id, found = uuid.uuid4().hex, []

    def read() -> None:
        with streams.read(run_id, timeout=30) as reader:
            for _ in range(sizes.latencies + 1):
                written = next(reader)["at"]
                found.append(time.perf_counter() - written)

    with streams.write_to(run_id, create=True) as writer:
        writer.append({**CHUNK, "at": time.perf_counter()})
        reading = threading.Thread(target=read)
        reading.start()
        time.sleep(0.5)
        for _ in range(sizes.latencies):
            writer.write({**CHUNK, "at": time.perf_counter()})
            time.sleep(sizes.pause)
        reading.join()
    return found[1:]


async def session_latencies(stream: S2Stream, sizes: Sizes) -> list[float]:
    """Seconds from ``submit()`` of an append session to a read session, each."""
    found: list[float] = []

    async def read() -> None:
        async for batch in stream.read_session(start=SeqNum(0)):
            now = time.perf_counter()
            found.extend(now - float(record.body) for record in batch.records)
            if len(found) >= sizes.latencies:
                return

    reading = asyncio.create_task(read())
    async with stream.append_session() as session:
        await asyncio.sleep(0.5)
        for _ in range(sizes.latencies):
            await session.submit(AppendInput([Record(b"%.9f" % time.perf_counter())]))
            await asyncio.sleep(sizes.pause)
    await reading
    return found


def measure(streams: Streams, url: str, sizes: Sizes, name: str = "s2") -> list[Figure]:
    """All figures of one distance, each the median of its rounds."""
    address, settings = parse_s2_address(url), StreamsSettings(url=url)

    def with_sdk(work: Callable[[S2Stream, Any], Awaitable[Any]], size: Any) -> Any:
        async def run() -> Any:
            clients = Clients(address, settings)
            stream = uuid.uuid4().hex
            basin = clients.basin("none")
            await basin.ensure_stream(stream)
            try:
                return await work(basin.stream(stream), size)
            finally:
                await clients.close()

        return asyncio.run(run())

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(streams, sizes.chunks),
        "session": lambda: with_sdk(session, sizes.chunks),
        "producer": lambda: with_sdk(producer, sizes.chunks),
        "append": lambda: ours_one_by_one(streams, sizes.single),
        "single": lambda: with_sdk(one_by_one, sizes.single),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    latencies: dict[str, list[float]] = {"ours": [], "session": []}
    for number in range(sizes.rounds):
        for way, work in ways.items():
            rates[way].append(work())
        latencies["ours"] += our_latencies(streams, sizes)
        latencies["session"] += with_sdk(session_latencies, sizes)
        print(f"    {name}: round {number + 1} of {sizes.rounds}", flush=True)
    rate = {way: statistics.median(values) for way, values in rates.items()}
    beside = "the SDK's append session"
    single = "an append a chunk"
    figures = [
        Figure(
            f"{name}_chunks_per_s", rate["ours"], "1/s", beside, rate["session"],
            at_least(rate["ours"] / rate["session"], 0.9, "x"),
        ),
        Figure(
            f"{name}_chunks_per_s_2", rate["ours"], "1/s", "the SDK's producer", rate["producer"]
        ),
        Figure(f"{name}_chunks_per_s_3", rate["ours"], "1/s", single, rate["single"]),
        Figure(f"{name}_appends_per_s", rate["append"], "1/s", single, rate["single"]),
    ]  # fmt: skip
    for share, part in ((0.5, "p50"), (0.99, "p99")):
        mine, theirs = (
            1000 * sorted(values)[int(share * (len(values) - 1))]
            for values in (latencies["ours"], latencies["session"])
        )
        figures.append(Figure(f"{name}_latency_{part}_ms", mine, "ms", beside, theirs))
    return figures


def _measured(url: str, redis_url: str, sizes: Sizes, name: str) -> list[Figure]:
    streams = Streams(url=url, redis_url=redis_url)
    try:
        return measure(streams, url, sizes, name)
    finally:
        streams.close()


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.s2", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="see whether it runs; the figures mean nothing"
    )
    quick = parser.parse_args().quick
    with own_server() as stage, S2Lite() as lite:
        figures = _measured(lite.url, stage.url, QUICK if quick else Sizes(), "s2")
        with Distance(lite.port, ROUND_TRIP) as distance:
            url = lite.url.replace(str(lite.port), str(distance.port))
            figures += _measured(url, stage.url, QUICK if quick else FAR, "s2_far")
    show(figures)
    if path := os.environ.get("BENCH_JSON"):
        write_json(figures, Path(path))


if __name__ == "__main__":
    main()
