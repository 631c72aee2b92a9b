"""How much memory does a chunk take in the server?"""

from __future__ import annotations

from typing import Any

import redis

from benchmarks import alternatives
from benchmarks.figures import Figure, at_most
from benchmarks.project import make_project, write_and_flush
from benchmarks.stage import CHUNK, CHUNK_JSON, Stage


def measure(stage: Stage) -> list[Figure]:
    """``MEMORY USAGE`` of everything a run's stream leaves behind, over its chunks."""
    stage.clear()
    chunks, singles = stage.size(100_000, 2000), stage.size(5000, 100)
    project = make_project(stage.url)
    _xadd(stage.client, "alternative/theirs", chunks)
    theirs = stage.memory("alternative/theirs") / chunks
    project.run(lambda task: write_and_flush(task, chunks), "hot")
    ours = stage.memory("cs/{run/hot}/*") / chunks
    project.run(lambda task: _append_one_by_one(task, singles), "single")
    single = stage.memory("cs/{run/single}/*") / singles
    project.close()
    stage.clear()
    name = alternatives.XADD
    return [
        Figure("memory_bytes_per_chunk", ours, "bytes", name, theirs, at_most(ours, 54, "bytes")),
        Figure("memory_bytes_per_single_chunk", single, "bytes", name, theirs),
    ]


def _xadd(client: redis.Redis, key: str, count: int) -> None:
    """The same entries as one ``XADD`` a round trip leaves, sooner."""
    pipeline = client.pipeline(transaction=False)
    for place in range(1, count + 1):
        pipeline.xadd(key, {"d": CHUNK_JSON})
        if place % 1000 == 0:
            pipeline.execute()


def _append_one_by_one(task: Any, count: int) -> None:
    """The worst case: every chunk is an entry of its own, as a slow stream's are."""
    for _ in range(count):
        task.streams.append(CHUNK)
