"""What do credentials cost: when they are at hand, and before the first chunk?"""

from __future__ import annotations

import time
import uuid
from typing import Any

import redis

from benchmarks.figures import Figure
from benchmarks.project import make_project
from benchmarks.rounds import alternate
from benchmarks.stage import CHUNK, CHUNK_JSON, Stage
from celery_streams import Slot


def measure(stage: Stage) -> list[Figure]:
    """A hit in the process's memory, and the first durable chunk of a cold stream."""
    stage.clear()
    count, gets = stage.size(100_000, 1000), stage.size(1000, 100)
    project = make_project(stage.url)
    cache, slot = project.streams.runtime.cache, Slot.run(uuid.uuid4().hex)
    cache.get(slot)
    shared = f"benchmarks/{uuid.uuid4().hex}"
    stage.client.set(shared, "credentials")

    def hit() -> float:
        start = time.perf_counter()
        for _ in range(count):
            cache.get(slot)
        return (time.perf_counter() - start) / count * 1e6

    def get() -> float:
        start = time.perf_counter()
        for _ in range(gets):
            stage.client.get(shared)
        return (time.perf_counter() - start) / gets * 1e6

    hits = alternate({"hit": hit, "get": get}, rounds=stage.size(5, 1))
    firsts = alternate(
        {
            "ours": lambda: project.run(_first_append),
            "xadd": lambda: _first_xadd(stage.client),
        },
        rounds=stage.size(100, 3),
        warm_up=stage.size(5, 1),
    )
    project.close()
    return [
        Figure("credentials_cache_hit_us", hits["hit"], "us", "GET from Redis", hits["get"]),
        Figure("first_append_ms", firsts["ours"], "ms", "first XADD", firsts["xadd"]),
    ]


def _first_append(task: Any) -> float:
    start = time.perf_counter()
    task.streams.append(CHUNK)
    return (time.perf_counter() - start) * 1e3


def _first_xadd(client: redis.Redis) -> float:
    key = f"alternative/{uuid.uuid4().hex}"
    start = time.perf_counter()
    client.xadd(key, {"d": CHUNK_JSON})
    return (time.perf_counter() - start) * 1e3
