"""Today's practice, each as a loop in a task that writes the same chunks one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from pydantic_core import to_json

from benchmarks.project import Project
from benchmarks.stage import CHUNK
from celery_streams import Slot

XADD = "XADD per chunk"
EVALSHA = "EVALSHA of XADD+EXPIRE per chunk"
UPDATE_STATE = "update_state per chunk"
PER_CHUNK = "20 ms authority per chunk + XADD"
PER_PROCESS = "20 ms authority per process + XADD"

_SCRIPT = """
local id = redis.call('XADD', KEYS[1], '*', 'd', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return id
"""

#: A task body: writes ``count`` chunks, returns the seconds it took for one.
Body = Callable[[Any], float]


def xadd(client: redis.Redis, count: int) -> Body:
    """``XADD`` per chunk."""
    return lambda task: _timed(count, lambda: client.xadd(_key(task), {"d": to_json(CHUNK)}))


def evalsha(client: redis.Redis, count: int) -> Body:
    """A script per chunk that adds it and pushes the stream's expiry on."""
    digest = client.script_load(_SCRIPT)
    return lambda task: _timed(
        count, lambda: client.evalsha(digest, 1, _key(task), to_json(CHUNK), 86400)
    )


def update_state(count: int) -> Body:
    """Celery's own progress report, which keeps nothing but the last."""
    return lambda task: _timed(count, lambda: task.update_state(state="PROGRESS", meta=CHUNK))


def authority_per_chunk(client: redis.Redis, project: Project, count: int) -> Body:
    """The reference before its fix: credentials are minted for every chunk."""
    authority = project.streams.runtime.authority

    def body(task: Any) -> float:
        def write() -> None:
            authority.initialize(Slot.run(task.request.id, "minted"))
            client.xadd(_key(task), {"d": to_json(CHUNK)})

        return _timed(count, write)

    return body


def authority_per_process(client: redis.Redis, project: Project, count: int) -> Body:
    """The reference after it: minted once in every process, here for ``count`` chunks."""
    authority = project.streams.runtime.authority

    def body(task: Any) -> float:
        minted: dict[Slot, Any] = {}
        slot = Slot.run(task.request.id, "minted")

        def write() -> None:
            if slot not in minted:
                minted[slot] = authority.initialize(slot)
            client.xadd(_key(task), {"d": to_json(CHUNK)})

        return _timed(count, write)

    return body


def _key(task: Any) -> str:
    return f"alternative/{task.request.id}"


def _timed(count: int, write: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(count):
        write()
    return (time.perf_counter() - start) / count
