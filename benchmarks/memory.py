"""How much memory does a chunk take in the server?"""

from __future__ import annotations

from typing import Any

from benchmarks import alternatives
from benchmarks.figures import Figure, at_most
from benchmarks.project import make_project, write_and_flush
from benchmarks.stage import CHUNK, Stage

_CHUNKS = 100_000
_SINGLE = 10_000


def measure(stage: Stage) -> list[Figure]:
    """``MEMORY USAGE`` of everything a run's stream leaves behind, over its chunks."""
    stage.clear()
    project = make_project(stage.url)
    project.run(alternatives.xadd(stage.client, _CHUNKS), "theirs")
    theirs = stage.memory("alternative/theirs") / _CHUNKS
    project.run(lambda task: write_and_flush(task, _CHUNKS), "hot")
    ours = stage.memory("cs/{run/hot}/*") / _CHUNKS
    project.run(_append_one_by_one, "single")
    single = stage.memory("cs/{run/single}/*") / _SINGLE
    project.close()
    stage.clear()
    name = alternatives.XADD
    return [
        Figure("memory_bytes_per_chunk", ours, "bytes", name, theirs, at_most(ours, 54, "bytes")),
        Figure("memory_bytes_per_single_chunk", single, "bytes", name, theirs),
    ]


def _append_one_by_one(task: Any) -> None:
    """The worst case: every chunk is an entry of its own, as a slow stream's are."""
    for _ in range(_SINGLE):
        task.streams.append(CHUNK)
