"""How fast does a client read what is there already?

The baseline makes many objects, and Python's collector would look at all that this process has
loaded again and again: a third of the time. So that is set aside first, as the gateway does too.
"""

from __future__ import annotations

import gc
import http.client
import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gateway.fan_out import names
from benchmarks.gateway.servers import GATEWAY, Server, request
from benchmarks.project import make_project
from benchmarks.rounds import alternate
from benchmarks.stage import CHUNK_JSON, Stage
from celery_streams import Slot
from celery_streams.contracts import Append, Attempt, Batch, Producer

#: Chunks an entry has: what a model's tokens make, with a writer that is a little behind.
_FILLING = 10
#: Entries of a page of the baseline.
_COUNT = 1000
#: Seconds that one reading of another server may take.
_LIMIT = 15.0
_XRANGE = "XRANGE pages"
_JSON = {"Content-Type": "application/json"}


def beside_xrange(server: Server, stage: Stage, chunks: int, rounds: int) -> tuple[float, float]:
    """Megabytes of chunks a second: of the gateway's pages, and of redis-py's on the same log."""
    project = make_project(stage.url)
    slot = Slot.run(names(1)[0])
    _fill(project.streams.runtime, slot, chunks)
    project.close()
    (log,) = stage.client.scan_iter(f"cs/{{run/{slot.owner}}}/log/*", count=1000)
    path = f"/v1/stream/{slot}"
    gc.collect()
    gc.freeze()
    medians = alternate(
        {
            GATEWAY: lambda: _speed(chunks, lambda: _read(server.port, path)),
            _XRANGE: lambda: _speed(chunks, lambda: _xrange(stage, log)),
        },
        rounds=rounds,
    )
    gc.unfreeze()
    stage.client.delete(log)
    return medians[GATEWAY], medians[_XRANGE]


def through_posts(server: Server, chunks: int, rounds: int) -> float:
    """Megabytes of chunks a second, of a stream that was filled by ``POST``."""
    path = f"/v1/stream/{names(1)[0]}"
    request(server.port, "PUT", path, b"", _JSON)
    size = min(chunks, 1000)
    body = b"[" + b",".join([CHUNK_JSON] * size) + b"]"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(chunks // size):
        connection.request("POST", path, body, _JSON)
        connection.getresponse().read()
    connection.close()
    speeds: list[float] = []
    while len(speeds) < rounds:
        size, spent = _read(server.port, path, _LIMIT)
        speeds.append(size / spent / 1e6)
        if spent > _LIMIT:
            print(f"        {server.name} had sent {size / 1e6:.1f} MB after {spent:.0f} s")
            break
    return statistics.median(speeds)


def _fill(runtime: Any, slot: Slot, chunks: int) -> None:
    producer = Producer(secrets.token_hex(6), Attempt(slot.owner, secrets.token_hex(8)))
    credentials = runtime.cache.get(slot)
    payload = b"\n".join([CHUNK_JSON] * _FILLING)
    entries = chunks // _FILLING
    for at in range(0, entries, 500):
        batches = (Batch(seq, payload, _FILLING) for seq in range(at, min(at + 500, entries)))
        appends = [Append(slot, batch, producer, credentials) for batch in batches]
        for result in runtime.store.append_many(appends):
            if isinstance(result, Exception):
                raise result


def _speed(chunks: int, read: Callable[[], tuple[int, float]]) -> float:
    size, spent = read()
    # Their separators come on top, whatever they are.
    if not chunks * len(CHUNK_JSON) <= size <= chunks * (len(CHUNK_JSON) + 3):
        raise RuntimeError(f"{size} bytes were read in place of {chunks} chunks")
    return chunks * len(CHUNK_JSON) / spent / 1e6


def _read(port: int, path: str, limit: float = 120.0) -> tuple[int, float]:
    """Follow the pages to the end, or for ``limit`` seconds: bytes and seconds."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    offset: str | None = "-1"
    total = 0
    while offset is not None and time.perf_counter() - start <= limit:
        connection.request("GET", f"{path}?offset={offset}")
        response = connection.getresponse()
        total += len(response.read())
        if response.status != 200:
            raise RuntimeError(f"GET {path}?offset={offset}: {response.status}")
        last = response.getheader("Stream-Up-To-Date")
        offset = None if last else response.getheader("Stream-Next-Offset")
    connection.close()
    return total, time.perf_counter() - start


def _xrange(stage: Stage, log: bytes) -> tuple[int, float]:
    begin = time.perf_counter()
    start, total = "-", 0
    while True:
        page: Any = stage.client.xrange(log, start, "+", _COUNT)
        total += sum(len(fields[b"d"]) for _, fields in page)
        if len(page) < _COUNT:
            return total, time.perf_counter() - begin
        start = f"({page[-1][0].decode()}"
