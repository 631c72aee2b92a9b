"""How often is the authority called when a fleet writes to one stream?"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import redis
from pydantic_core import to_json

from benchmarks.figures import Figure, at_most
from benchmarks.processes import together
from benchmarks.project import INITIALIZES, REMOTE, make_project
from benchmarks.stage import CHUNK, Stage
from celery_streams import Slot

_CHUNKS = 10
_FLEETS = (1, 4, 16)
_PER_CHUNK, _PER_PROCESS = "authority per chunk", "authority per process"


def measure(stage: Stage) -> list[Figure]:
    """Calls for 10 chunks from each process, all processes at once on a cold stream."""
    figures = []
    for size in _FLEETS:
        per_process = _calls(stage, _cached_per_process, size)
        value = _calls(stage, _through_streams, size)
        name = f"initialize_calls_{size}_process{'es' if size > 1 else ''}"
        figures.append(Figure(name, value, "calls", _PER_PROCESS, per_process, at_most(value, 1)))
        if size == _FLEETS[-1]:
            per_chunk = _calls(stage, _per_chunk, size)
            figures.append(
                Figure(f"{name}_beside_per_chunk", value, "calls", _PER_CHUNK, per_chunk)
            )
    return figures


def _calls(stage: Stage, write: Callable[..., None], size: int) -> int:
    stage.clear()
    run_id = uuid.uuid4().hex
    with together([(write, (stage.url, run_id))] * size) as writers:
        for writer in writers:
            writer.result(timeout=60)
    return int(stage.client.get(INITIALIZES) or 0)


def _through_streams(begin: Callable[[], Any], url: str, run_id: str) -> None:
    project = make_project(url, authority_latency=REMOTE)
    begin()
    with project.streams.write_to(run_id, create=True) as writer:
        for _ in range(_CHUNKS):
            writer.write(CHUNK)
    project.close()


def _cached_per_process(begin: Callable[[], Any], url: str, run_id: str) -> None:
    _mint_and_xadd(begin, url, run_id, every_chunk=False)


def _per_chunk(begin: Callable[[], Any], url: str, run_id: str) -> None:
    _mint_and_xadd(begin, url, run_id, every_chunk=True)


def _mint_and_xadd(begin: Callable[[], Any], url: str, run_id: str, *, every_chunk: bool) -> None:
    project = make_project(url, authority_latency=REMOTE)
    authority = project.streams.runtime.authority
    client = redis.Redis.from_url(url, protocol=2)
    begin()
    for place in range(_CHUNKS):
        if every_chunk or place == 0:
            authority.initialize(Slot.run(run_id))
        client.xadd(f"alternative/{run_id}", {"d": to_json(CHUNK)})
    client.close()
    project.close()
