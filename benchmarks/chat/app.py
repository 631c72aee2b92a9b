"""The agents: ours, and a task that does what teams write by hand. Both note when they write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery
from pydantic_core import to_json

from celery_streams import ChatAgent, Streams

URL = os.environ["BENCHMARKS_URL"]

app = Celery("benchmarks")
app.conf.update(
    broker_url=URL,
    result_backend=URL,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
streams = Streams(app, url=URL, secret="the secret of the benchmarks")


def words(count: int, pace: float) -> Iterator[str]:
    """Each is the time at which it is made, nanoseconds; ``pace``: seconds between two."""
    for number in range(count):
        if number:
            time.sleep(pace)
        yield str(time.monotonic_ns())


@app.task(bind=True, base=ChatAgent, name="benchmarks.agent")
def agent(self: Any, session_id: str) -> None:
    """A chat agent."""
    for word in words(**self.chat.body["words"]):
        self.chat.response.text(word)


@app.task(name="benchmarks.by_hand", ignore_result=True)
def by_hand(key: str, count: int, pace: float) -> None:
    """An ``XADD`` a chunk, on a connection that the process keeps."""
    client = _client()

    def add(chunk: dict[str, Any]) -> None:
        client.xadd(key, {"d": to_json(chunk)})

    add({"type": "start", "messageId": key})
    add({"type": "text-start", "id": "1"})
    for word in words(count, pace):
        add({"type": "text-delta", "id": "1", "delta": word})
    add({"type": "text-end", "id": "1"})
    add({"type": "finish"})
    client.expire(key, 3600)


_clients: dict[int, redis.Redis] = {}


def _client() -> redis.Redis:
    return _clients.setdefault(os.getpid(), redis.Redis.from_url(URL, protocol=2))
