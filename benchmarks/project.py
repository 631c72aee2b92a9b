"""The Celery project that writes: an app with streams, and tasks that time themselves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery

from benchmarks.stage import CHUNK
from celery_streams import Credentials, Slot, Streams
from celery_streams.contracts import JSON
from celery_streams.credentials.authority import RedisAuthority
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings

#: What an authority behind HTTP takes, seconds.
REMOTE = 0.020
#: Where every call of an authority is counted.
INITIALIZES = "benchmarks/initializes"


class RemoteAuthority(RedisAuthority):
    """The authority as if behind HTTP: ``latency`` seconds slower, and its calls are counted."""

    def __init__(
        self, link: RedisLink, layout: Layout, settings: StreamsSettings, latency: float
    ) -> None:
        super().__init__(link, layout, settings)
        self._counts = link
        self._latency = latency

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """Count, wait, mint."""
        self._counts.call(Call("INCR", (INITIALIZES,)))
        time.sleep(self._latency)
        return super().initialize(slot, content_type=content_type)


@dataclass(frozen=True, slots=True)
class Project:
    """An app, its streams, and ``run``, which executes a task's body in this process."""

    app: Celery
    streams: Streams
    run: Callable[..., Any]

    def close(self) -> None:
        """Let go of the server."""
        self.streams.close()
        self.app.close()


def make_project(url: str, *, authority_latency: float | None = None) -> Project:
    """A project whose broker, result backend and streams are the server at ``url``.

    With ``authority_latency`` (seconds) its authority is a :class:`RemoteAuthority`.
    """
    app = Celery("benchmarks", set_as_current=False)
    app.conf.update(
        broker_url=url,
        result_backend=url,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    authority = None
    if authority_latency is not None:
        authority = partial(RemoteAuthority, latency=authority_latency)
    streams = Streams(app, url=url, secret="benchmarks", authority=authority)
    for body in (write_in_bursts, write_and_flush):
        app.task(bind=True, name=f"benchmarks.{body.__name__}")(body)

    @app.task(bind=True, name="benchmarks.call")
    def call(self: Any, body: Callable[[Any], Any]) -> Any:
        return body(self)

    def run(body: Callable[[Any], Any], run_id: str | None = None) -> Any:
        return call.apply((body,), task_id=run_id or uuid.uuid4().hex, throw=True).get()

    return Project(app, streams, run)


def write_in_bursts(task: Any, bursts: int, size: int) -> float:
    """Seconds a chunk costs in ``write()`` alone, in bursts that the buffer takes at once."""
    spent = 0.0
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(size):
            task.streams.write(CHUNK)
        spent += time.perf_counter() - start
        task.streams.flush()
    return spent / (bursts * size)


def write_and_flush(task: Any, count: int) -> tuple[float, float]:
    """Write ``count`` chunks in a hot loop: seconds in the loop, and until all are durable."""
    start = time.perf_counter()
    for _ in range(count):
        task.streams.write(CHUNK)
    written = time.perf_counter()
    task.streams.flush()
    return written - start, time.perf_counter() - start
