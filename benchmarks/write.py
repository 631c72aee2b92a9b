"""What does a chunk cost the task that writes it?"""

from __future__ import annotations

from benchmarks import alternatives
from benchmarks.figures import Figure, at_most
from benchmarks.project import REMOTE, make_project, write_and_flush, write_in_bursts
from benchmarks.rounds import alternate
from benchmarks.stage import Stage

_OURS, _HOT = "ours", "ours, hot loop"


def measure(stage: Stage) -> list[Figure]:
    """Microseconds in the task per chunk; the authority is 20 ms away, for us too."""
    stage.clear()
    project = make_project(stage.url, authority_latency=REMOTE)
    client, single, hot = stage.client, stage.size(3000, 100), stage.size(50_000, 2000)
    bodies = {
        alternatives.XADD: alternatives.xadd(client, single),
        alternatives.EVALSHA: alternatives.evalsha(client, single),
        alternatives.UPDATE_STATE: alternatives.update_state(stage.size(500, 50)),
        alternatives.PER_CHUNK: alternatives.authority_per_chunk(
            client, project, stage.size(15, 3)
        ),
        alternatives.PER_PROCESS: alternatives.authority_per_process(
            client, project, stage.size(1000, 50)
        ),
        _OURS: lambda task: write_in_bursts(task, stage.size(20, 2), 1000),
        _HOT: lambda task: write_and_flush(task, hot)[0] / hot,
    }
    medians = alternate(
        {name: lambda body=body: project.run(body) * 1e6 for name, body in bodies.items()},
        rounds=stage.size(5, 1),
    )
    project.close()
    ours = medians.pop(_OURS)
    loop = medians.pop(_HOT)
    before = medians[alternatives.XADD]
    figures = [
        Figure("write_call_us", ours, "us", alternatives.XADD, before, at_most(ours, 4, "us")),
        Figure("write_call_hot_loop_us", loop, "us", alternatives.XADD, before),
    ]
    names = {
        "write_call_us_beside_evalsha": alternatives.EVALSHA,
        "write_call_us_beside_update_state": alternatives.UPDATE_STATE,
        "write_call_us_beside_authority_per_chunk": alternatives.PER_CHUNK,
        "write_call_us_beside_authority_per_process": alternatives.PER_PROCESS,
    }
    return figures + [
        Figure(name, ours, "us", baseline, medians[baseline]) for name, baseline in names.items()
    ]
