"""Does an append to a long stream cost more than one to a short stream?"""

from __future__ import annotations

import secrets
import statistics
import time
import uuid
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from benchmarks.figures import Budget, Figure
from benchmarks.project import make_project
from benchmarks.stage import CHUNK_JSON, Stage
from celery_streams import Credentials, Slot
from celery_streams.contracts import Append, Attempt, Batch, Producer

#: Chunks an entry has while the streams are filled.
_FILLING = 10


def measure(stage: Stage) -> list[Figure]:
    """Round trips of appends of one chunk each, to the two streams in turn."""
    stage.clear()
    lengths = (1000, stage.size(1_000_000, 10_000))
    project = make_project(stage.url)
    runtime = project.streams.runtime
    short, long = (_filled(runtime, length) for length in lengths)
    spent: dict[int, list[float]] = {id(short): [], id(long): []}
    for _ in range(stage.size(4000, 50)):
        for target in (short, long):
            append = target.next(1)
            start = time.perf_counter()
            runtime.store.append(append.slot, append.batch, append.producer, append.credentials)
            spent[id(target)].append(time.perf_counter() - start)
    project.close()
    stage.clear()
    at_short, at_long = (statistics.median(spent[id(each)]) * 1e6 for each in (short, long))
    ratio = at_long / at_short
    return [
        Figure("append_round_trip_us", at_long, "us", f"at {lengths[0]:,} chunks", at_short),
        Figure(
            "append_cost_ratio_1e6", ratio, "x", f"at {lengths[0]:,} chunks", 1.0,
            Budget("0.9 .. 1.1 x", 0.9 <= ratio <= 1.1),
        ),
    ]  # fmt: skip


@dataclass(slots=True)
class _Target:
    slot: Slot
    producer: Producer
    credentials: Credentials
    seqs: Any = field(default_factory=count)

    def next(self, chunks: int) -> Append:
        batch = Batch(next(self.seqs), b"\n".join([CHUNK_JSON] * chunks), chunks)
        return Append(self.slot, batch, self.producer, self.credentials)


def _filled(runtime: Any, length: int) -> _Target:
    slot = Slot.run(uuid.uuid4().hex)
    producer = Producer(secrets.token_hex(6), Attempt(slot.owner, secrets.token_hex(8)))
    target = _Target(slot, producer, runtime.cache.get(slot))
    left = length // _FILLING
    while left:
        size = min(left, 500)
        left -= size
        for result in runtime.store.append_many([target.next(_FILLING) for _ in range(size)]):
            if isinstance(result, Exception):
                raise result
    return target
