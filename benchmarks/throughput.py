"""How many chunks a second become durable, written in a hot loop and flushed?"""

from __future__ import annotations

from benchmarks import alternatives
from benchmarks.figures import Figure, at_least
from benchmarks.project import make_project, write_and_flush
from benchmarks.rounds import alternate
from benchmarks.stage import Stage

_OURS = "ours"


def measure(stage: Stage) -> list[Figure]:
    """From the first ``write()`` to the return of ``flush()``, in one process."""
    stage.clear()
    chunks = stage.size(200_000, 2000)
    project = make_project(stage.url)
    bodies = {
        alternatives.XADD: alternatives.xadd(stage.client, stage.size(5000, 100)),
        _OURS: lambda task: write_and_flush(task, chunks)[1] / chunks,
    }
    medians = alternate(
        {name: lambda body=body: 1 / project.run(body) for name, body in bodies.items()},
        rounds=stage.size(5, 1),
    )
    counts = project.streams.stats()
    project.close()
    ours, theirs = medians[_OURS], medians[alternatives.XADD]
    return [
        Figure(
            "durable_chunks_per_s", ours, "1/s", alternatives.XADD, theirs,
            at_least(ours / theirs, 10, "x"),
        ),
        Figure("chunks_per_batch", counts.chunks / counts.appends, "chunks"),
    ]  # fmt: skip
