"""Worker processes killed in mid-stream: the next attempt takes over, and the stream ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from celery_streams import Head, Slot, StreamNotFound, Streams
from tests.servers import ValkeyProcess
from tests.servers.children import eventually
from tests.soak.harness import Report, stored, streams_at
from tests.workers import Worker, worker

pytestmark = pytest.mark.soak

TO, PACE = 400, 0.001
KILLS_PER_RUN = 3


@pytest.mark.timeout(1200)
def test_a_child_killed_at_random_moments_leaves_one_whole_stream(
    times: Callable[[int, int], int],
) -> None:
    """Attempts continue after what is durable, never interleave, and the stream ends."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    # The pool takes seconds to replace a lost process; several workers share the wait.
    parts, kills = times(2, 4), times(6, 200)
    with ThreadPoolExecutor(parts) as pool:
        reports = list(
            pool.map(_kill_again_and_again, range(seed, seed + parts), [kills / parts] * parts)
        )
    report = Report("pool process killed in mid-stream (acks_late)")
    for part in reports:
        report.add(part)
    assert report.injected >= kills
    report.assert_clean()


def _kill_again_and_again(seed: int, kills: float) -> Report:
    report = Report("")
    chance = random.Random(seed)
    with (
        ValkeyProcess() as server,
        worker("tests.apps.soak_app", server, concurrency=1) as running,
    ):
        streams = streams_at(server.url)
        while report.injected < kills:
            slot, attempts = _run_with_kills(running, streams, chance, report)
            _check(server.url, slot, attempts, report)
        streams.close()
    return report


def _run_with_kills(
    running: Worker, streams: Streams, chance: random.Random, report: Report
) -> tuple[Slot, int]:
    """One run whose process is killed at random places of its stream."""
    result = running.app.send_task("tests.apps.soak_app.count_on", (TO, PACE))
    slot = Slot.run(result.id)
    for place in sorted(chance.sample(range(1, TO - 50), KILLS_PER_RUN)):
        eventually(lambda place=place: _end(streams, slot) >= place, f"chunk {place} of {slot}")
        running.kill_child()
        report.injected += 1
        running.wait_children()
    attempts = result.get(timeout=90)
    eventually(lambda: _head(streams, slot).closed, f"the end of {slot}")
    assert _head(streams, slot).closed == "SUCCESS"
    return slot, attempts


def _check(url: str, slot: Slot, attempts: int, report: Report) -> None:
    chunks = stored(url, slot)
    numbers = [chunk["number"] for chunk in chunks]
    order = [chunk["attempt"] for chunk in chunks]
    report.written += TO
    report.lost += len(set(range(TO)) - set(numbers))
    report.duplicated += len(numbers) - len(set(numbers))
    report.disordered += numbers != sorted(numbers)
    assert order == sorted(order), f"attempts interleave in {slot}"
    # The last attempt may find everything written: its predecessor died before it could say so.
    assert attempts >= order[-1] >= 2


def _head(streams: Streams, slot: Slot) -> Head:
    return streams.runtime.store.head(slot)


def _end(streams: Streams, slot: Slot) -> int:
    with suppress(StreamNotFound):
        return _head(streams, slot).end
    return 0
