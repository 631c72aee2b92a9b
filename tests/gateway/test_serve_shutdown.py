"""A gateway that is told to stop, and workers that die: nothing is lost, everybody goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.gateway.serving import Gateway, Reading, read_live, serving
from tests.servers import ValkeyProcess
from tests.servers.children import end, eventually

READERS = 50
PATH = "/v1/stream/numbers"


@pytest.fixture
def two(valkey: ValkeyProcess) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways on one store, the stream made."""
    valkey.flush()
    with serving(valkey.url) as first, serving(valkey.url) as second:
        first.request("PUT", PATH, headers={"content-type": "application/json"})
        yield first, second


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def test_readers_of_a_gateway_that_stops_end_cleanly_and_lose_nothing_on_the_next(
    two: tuple[Gateway, Gateway],
) -> None:
    """50 SSE readers, SIGTERM: complete answers within 2 s; the rest comes from another."""
    first, second = two
    readings = [Reading() for _ in range(READERS)]

    async def main() -> float:
        reads = [asyncio.create_task(read_live(first.port, PATH, each)) for each in readings]
        await asyncio.to_thread(first.append, PATH, *range(10))
        await _until(lambda: all(len(each.values) == 10 for each in readings))
        appending = asyncio.create_task(
            asyncio.to_thread(lambda: [second.append(PATH, n) for n in range(10, 200)])
        )
        await _until(lambda: all(len(each.values) > 30 for each in readings))
        first.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await asyncio.gather(*reads)
        took = time.monotonic() - began
        assert all(each.clean for each in readings)
        assert not any(each.closed for each in readings)
        assert any(len(each.values) < 200 for each in readings), "it was too late to show anything"
        again = [asyncio.create_task(read_live(second.port, PATH, each)) for each in readings]
        await appending
        await asyncio.to_thread(second.request, "POST", PATH, None, {"stream-closed": "true"})
        await asyncio.gather(*again)
        return took

    took = asyncio.run(main())
    assert took < 2
    assert all(each.values == [*range(200)] and each.closed for each in readings)
    assert first.process.wait(timeout=5) == 0
    first.log.join()
    assert "ERROR" not in first.log.text
    assert "Traceback" not in first.log.text


def test_a_long_poll_ends_with_the_gateway(two: tuple[Gateway, Gateway]) -> None:
    """An answer without data that names the offset to go on from."""
    first, _ = two

    async def main() -> tuple[int, float]:
        path = f"{PATH}?live=long-poll&offset=0000000000000000"
        polling = asyncio.create_task(asyncio.to_thread(first.request, "GET", path))
        await asyncio.sleep(0.5)
        first.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        answer = await polling
        assert answer.headers["stream-next-offset"] == "0" * 16
        return answer.status, time.monotonic() - began

    status, took = asyncio.run(main())
    assert status == 204
    assert took < 2


@pytest.mark.parametrize("query", ["?live=sse&offset=-1", "?offset=-1"], ids=["live", "plain"])
def test_whoever_does_not_read_is_cut_off_when_its_time_is_over(
    valkey: ValkeyProcess, query: str
) -> None:
    """It has ``gateway_shutdown_timeout`` seconds, not less; the process ends then, with 0."""
    valkey.flush()
    size = 24 << 20  # one event that no socket's buffers hold
    env = {
        "CELERY_STREAMS_GATEWAY_SHUTDOWN_TIMEOUT": "2",
        "CELERY_STREAMS_GATEWAY_MAX_BODY_BYTES": str(size + 100),
        "CELERY_STREAMS_MAX_CHUNK_BYTES": str(size + 100),
    }
    with serving(valkey.url, **env) as gateway:
        gateway.request("PUT", PATH, headers={"content-type": "application/json"})
        gateway.append(PATH, "x" * size)
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", gateway.port))
            stuck.sendall(f"GET {PATH}{query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            assert stuck.recv(100)
            began = time.monotonic()
            assert end(gateway.process) == 0
            assert 2 <= time.monotonic() - began < 7
        gateway.log.join()
        assert "cutting off connections that have not ended by now: 1" in gateway.log.text
        assert "Traceback" not in gateway.log.text
        assert "ERROR" not in gateway.log.text


def test_a_worker_process_that_is_killed_is_replaced_and_its_readers_go_on(
    valkey: ValkeyProcess,
) -> None:
    """kill -9 of one of two: its readers' answers break off, and are continued by the other."""
    valkey.flush()
    with serving(valkey.url, "--insecure", "--workers", "2") as gateway:
        eventually(lambda: len(gateway.workers) == 2, "two workers")
        gateway.request("PUT", PATH, headers={"content-type": "application/json"})
        readings = [Reading() for _ in range(READERS)]

        async def read(reading: Reading) -> None:
            while not reading.closed:
                await read_live(gateway.port, PATH, reading)

        async def main() -> int:
            reads = [asyncio.create_task(read(each)) for each in readings]
            await asyncio.to_thread(gateway.append, PATH, *range(10))
            await _until(lambda: all(len(each.values) == 10 for each in readings))
            victim = max(gateway.workers, key=lambda each: len(each.net_connections()))
            os.kill(victim.pid, signal.SIGKILL)
            for number in range(10, 100):
                await asyncio.to_thread(gateway.append, PATH, number)
            await asyncio.to_thread(gateway.request, "POST", PATH, None, {"stream-closed": "true"})
            await asyncio.gather(*reads)
            return victim.pid

        dead = asyncio.run(main())
        assert all(each.values == [*range(100)] for each in readings)
        eventually(
            lambda: len(gateway.workers) == 2 and dead not in [w.pid for w in gateway.workers],
            "two workers again",
        )
        workers = gateway.workers
        assert end(gateway.process, patience=15) == 0
        assert not any(worker.is_running() for worker in workers)


def test_workers_do_not_outlive_a_supervisor_that_is_killed(valkey: ValkeyProcess) -> None:
    """SIGKILL of the parent is as good as SIGTERM to its workers."""
    with serving(valkey.url, "--insecure", "--workers", "2") as gateway:
        eventually(lambda: len(gateway.workers) == 2, "two workers")
        workers = gateway.workers
        eventually(lambda: gateway.log.text.count("startup complete") == 2, "both serve")
        gateway.process.kill()
        eventually(lambda: not any(map(_alive, workers)), "the workers end", timeout=10)


def _alive(process: object) -> bool:
    return process.is_running() and process.status() != "zombie"  # type: ignore[attr-defined]
