"""What every benchmark stands on: one Valkey server of our own, and clients of it."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
import redis.exceptions as rx
from pydantic_core import to_json

from celery_streams.embedded import resolve

#: What is written everywhere: 51 bytes of compact JSON.
CHUNK = {"type": "text-delta", "id": "1", "delta": "a few word"}
CHUNK_JSON = to_json(CHUNK)
assert len(CHUNK_JSON) == 51


@dataclass(frozen=True, slots=True)
class Stage:
    """The server under test. ``url`` is plain ``redis://``."""

    url: str
    client: redis.Redis
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """How many of something: ``full`` to measure it, ``quick`` to see whether that works."""
        return quick if self.quick else full

    def clear(self) -> None:
        """Remove all data (scripts stay)."""
        self.client.flushall()

    def memory(self, pattern: str) -> int:
        """Bytes the server holds for the keys that match ``pattern``, their names included."""
        # Every node is looked at, not a sample of them.
        sizes = (
            self.client.memory_usage(key, samples=0) or 0
            for key in self.client.scan_iter(pattern, count=1000)
        )
        return sum(sizes)

    def calls(self) -> dict[str, int]:
        """Calls of each command so far, those inside scripts included, but not our own."""
        statistics: dict[str, Any] = self.client.info("commandstats")
        ours = ("info", "client", "config")
        return {
            name.removeprefix("cmdstat_"): int(each["calls"])
            for name, each in statistics.items()
            if not name.removeprefix("cmdstat_").startswith(ours)
        }


@contextmanager
def own_server(*, quick: bool = False) -> Iterator[Stage]:
    """A Valkey server as ``embedded://`` starts one (append-only file and all), until the end."""
    directory = tempfile.mkdtemp(prefix="celery-streams-benchmarks-")
    os.environ["CELERY_STREAMS_EMBEDDED_IDLE"] = "600"
    for name in [name for name in os.environ if name.startswith("CELERY_STREAMS_")]:
        if name != "CELERY_STREAMS_EMBEDDED_IDLE":
            del os.environ[name]  # the defaults are what is measured
    url = resolve(f"embedded://{directory}")
    client = redis.Redis.from_url(url, client_name="benchmarks", protocol=2)
    try:
        yield Stage(url, client, quick)
    finally:
        # Celery's results end their subscriptions when they are collected; without a server
        # Celery 5.6 would try that for long.
        gc.collect()
        with suppress(rx.RedisError, OSError):
            client.shutdown(nosave=True)
        client.close()
        shutil.rmtree(directory, ignore_errors=True)
