"""What does a delivered event cost the server, and how long is it on its way?"""

from __future__ import annotations

import multiprocessing
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from benchmarks.gateway import subscribers, writers
from benchmarks.gateway.pace import Pace, chunk
from benchmarks.gateway.servers import Server, cpu_of, cpu_of_all, request
from benchmarks.rounds import percentile
from benchmarks.stage import Stage

#: Seconds after the last append in which the rest must come: what has not by then is lost.
_PATIENCE = 10.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.gateway.subscribers", "benchmarks.gateway.writers"])


@dataclass(frozen=True, slots=True)
class FanOut:
    """``streams`` streams with ``each`` subscribers, ``rate`` appends a second to every stream.

    ``seconds`` are measured, after ``warm_up``. With ``straight`` the appends do not go through
    the server but to Redis, where the gateway finds them.
    """

    streams: int
    each: int
    rate: float
    warm_up: float
    seconds: float
    straight: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. CPU times are per delivered event, microseconds."""

    cpu_us: float
    redis_cpu_us: float
    p50_ms: float
    p99_ms: float
    received: int
    lost: int
    refused: int
    seconds: float
    chunks_per_read: float
    generator_load: float
    writers_load: float
    others_load: float
    late_ms: float
    redis_connections: int

    def __str__(self) -> str:
        return (
            f"{self.received:,} events in {self.seconds:.1f} s, {self.lost:,} missing, "
            f"{self.refused} refused; {self.cpu_us:.1f} us CPU each, "
            f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, "
            f"{self.chunks_per_read:.1f} chunks at a time; "
            f"cores: generator {self.generator_load:.2f}, writers {self.writers_load:.2f}, "
            f"other processes {self.others_load:.2f}; appends late by {self.late_ms:.1f} ms (p99)"
        )


def fan_out(server: Server, stage: Stage, load: FanOut) -> Outcome:
    """Subscribe, warm up, measure, leave."""
    pace = Pace(load.streams, load.rate, load.seconds)
    redis_pid = int(stage.client.info("server")["process_id"])
    with _crew(load.straight) as (audience, authors):
        if authors is None:
            paths = create(server, load.streams)
        else:
            paths = authors(writers.create, stage.url, names(load.streams)).result(timeout=60)
        audience(subscribers.subscribe, server.port, paths, load.each, not load.straight).result(
            timeout=120
        )
        author_cpu = 0.0
        for each in (Pace(load.streams, load.rate, load.warm_up), pace):
            busy, cpu, redis_cpu = cpu_of_all(), server.cpu(), cpu_of(redis_pid)
            receiving = audience(subscribers.run, each, _PATIENCE)
            if authors is not None:
                author_cpu = authors(writers.run, each).result(timeout=each.seconds + 30)
            report = receiving.result(timeout=each.seconds + _PATIENCE + 10)
            cpu, redis_cpu = server.cpu() - cpu, cpu_of(redis_pid) - redis_cpu
            busy = cpu_of_all() - busy - cpu - redis_cpu - report.cpu - author_cpu
        connections = redis_connections(server, stage)
        events = max(report.received, 1)
        milliseconds = [each / 1e6 for each in report.latencies] or [float("inf")]
        return Outcome(
            cpu / events * 1e6, redis_cpu / events * 1e6,
            percentile(milliseconds, 50), percentile(milliseconds, 99),
            report.received, report.lost, report.refused + report.closed, report.seconds,
            report.chunks_per_read, report.cpu / report.seconds, author_cpu / report.seconds,
            max(busy, 0.0) / report.seconds, report.late_ms, connections,
        )  # fmt: skip


def hold(server: Server, streams: int, each: int, seconds: float) -> tuple[float, int, int]:
    """Open subscribers to whom nothing happens: the server's MiB, how many, how many it dropped."""
    with _crew(False) as (audience, _):
        paths = create(server, streams)
        audience(subscribers.subscribe, server.port, paths, each, False).result(timeout=180)
        count, dropped = audience(subscribers.idle, seconds).result(timeout=seconds + 30)
        return server.rss_mib(), count, dropped


def names(count: int) -> list[str]:
    """Names that no stream has yet."""
    run = secrets.token_hex(4)
    return [f"{run}-{place}" for place in range(count)]


def create(server: Server, count: int) -> list[str]:
    """JSON streams with one chunk in each; returns their paths."""
    paths = [f"/v1/stream/{name}" for name in names(count)]
    headers = {"Content-Type": "application/json"}
    body = to_json(chunk(0, 0))
    for path in paths:
        for method, content in (("PUT", b""), ("POST", body)):
            status, answer = request(server.port, method, path, content, headers)
            if status not in (200, 201, 204):
                raise RuntimeError(f"{server.name}: {method} {path}: {status} {answer!r}")
    return paths


def redis_connections(server: Server, stage: Stage) -> int:
    """How many of Redis's clients are this process."""
    ports = server.local_ports()
    clients: list[dict[str, Any]] = stage.client.client_list()
    return sum(int(str(each["addr"]).rpartition(":")[2]) in ports for each in clients)


_Call = Callable[..., Future[Any]]


@contextmanager
def _crew(straight: bool) -> Iterator[tuple[_Call, _Call | None]]:
    """A process that subscribes (and posts), and with ``straight`` one that writes to Redis."""
    with ProcessPoolExecutor(1, mp_context=_context) as audience:
        authors = ProcessPoolExecutor(1, mp_context=_context) if straight else None
        try:
            yield audience.submit, authors.submit if authors else None
        finally:
            audience.submit(subscribers.leave)
            if authors is not None:
                authors.submit(writers.leave)
                authors.shutdown()
