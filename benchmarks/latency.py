"""How long from ``write()`` in one process to the reader in another that has the chunk?"""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections.abc import Callable
from typing import Any

import redis
from pydantic_core import from_json, to_json

from benchmarks.figures import Figure, at_most
from benchmarks.processes import together
from benchmarks.project import make_project
from benchmarks.rounds import percentile
from benchmarks.stage import CHUNK, Stage

_ROUNDS = 5
#: Seconds between two writes: both streams are idle when a chunk comes.
_PACE = 0.002
_BASELINE = "XADD + blocked XREAD"


def measure(stage: Stage) -> list[Figure]:
    """One process writes to both streams in turn; a process for each is blocked reading."""
    stage.clear()
    per_round, warm_up = stage.size(500, 20), stage.size(100, 10)
    count = warm_up + _ROUNDS * per_round
    run_id = uuid.uuid4().hex
    with together(
        [(_read, (stage.url, run_id, count)), (_xread, (stage.url, run_id, count))]
    ) as readers:
        time.sleep(0.3)  # until both wait
        project = make_project(stage.url)
        (sent, spent), (sent_by_xadd, spent_by_xadd) = project.run(
            _write_both(stage.client, count), run_id
        )
        received, received_by_xread = (reader.result(timeout=60) for reader in readers)
        project.close()
    ours = _milliseconds(sent, received)[warm_up:]
    theirs = _milliseconds(sent_by_xadd, received_by_xread)[warm_up:]
    figures = []
    for percent in (50, 99):
        value, baseline = (_median_of(each, percent, per_round) for each in (ours, theirs))
        budget = at_most(value / baseline, 1.5, "x")
        figures.append(Figure(f"latency_p{percent}_ms", value, "ms", _BASELINE, baseline, budget))
    call, xadd = (statistics.median(each[warm_up:]) / 1e3 for each in (spent, spent_by_xadd))
    figures.append(Figure("write_call_paced_us", call, "us", "XADD, paced", xadd))
    return figures


#: When each chunk was given away, and how long that took; nanoseconds.
_Times = tuple[list[int], list[int]]


def _write_both(client: redis.Redis, count: int) -> Callable[[Any], tuple[_Times, _Times]]:
    def body(task: Any) -> tuple[_Times, _Times]:
        key = f"alternative/{task.request.id}"
        ours: _Times = ([], [])
        theirs: _Times = ([], [])
        both: list[tuple[_Times, Callable[[], Any]]] = [
            (ours, lambda: task.streams.write(CHUNK)),
            (theirs, lambda: client.xadd(key, {"d": to_json(CHUNK)})),
        ]
        for _ in range(count):
            random.shuffle(both)
            for (sent, spent), write in both:
                sent.append(time.monotonic_ns())
                write()
                spent.append(time.monotonic_ns() - sent[-1])
                time.sleep(_PACE)
        return ours, theirs

    return body


def _read(begin: Callable[[], Any], url: str, run_id: str, count: int) -> list[int]:
    project = make_project(url)
    begin()
    received = []
    for _ in project.streams.read(run_id, timeout=60):
        received.append(time.monotonic_ns())
        if len(received) == count:
            break
    project.close()
    return received


def _xread(begin: Callable[[], Any], url: str, run_id: str, count: int) -> list[int]:
    client = redis.Redis.from_url(url, protocol=2)
    begin()
    key, last = f"alternative/{run_id}", b"0"
    received: list[int] = []
    while len(received) < count:
        reply: Any = client.xread({key: last}, block=60_000)
        for entry_id, fields in reply[0][1]:
            from_json(fields[b"d"])
            received.append(time.monotonic_ns())
            last = entry_id
    client.close()
    return received


def _milliseconds(sent: list[int], received: list[int]) -> list[float]:
    return [(there - here) / 1e6 for here, there in zip(sent, received, strict=True)]


def _median_of(values: list[float], percent: int, per_round: int) -> float:
    """The median of every round's percentile: one hiccup of the machine is not the figure."""
    rounds = [values[at : at + per_round] for at in range(0, len(values), per_round)]
    return statistics.median(percentile(each, percent) for each in rounds)
