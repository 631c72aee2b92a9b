"""Worker processes killed at any moment: the next attempt takes over, and the stream ends."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from celery_streams import Head, Slot, StreamNotFound
from tests.lifecycle.client import Client
from tests.servers import ValkeyProcess
from tests.servers.children import eventually
from tests.soak.harness import Report, stored
from tests.workers import worker

pytestmark = pytest.mark.soak

TASK = "tests.apps.soak_app.count_on"
TO, PACE = 400, 0.001
#: Seconds: the lease of a worker, and the broker's patience (soak_app) that is added to it.
ORPHAN_TIMEOUT, VISIBILITY_TIMEOUT = 3.0, 5.0
#: One kill in so many is aimed at the last moments: the drain, the result, the close.
AIMED = 3
OVER = "after the end"


@pytest.mark.timeout(1200)
def test_a_child_killed_at_random_moments_leaves_one_whole_stream(
    times: Callable[[int, int], int],
) -> None:
    """From before the first write until after the end: nothing lost, doubled or interleaved.

    A kill may hit no task at all. Each run ends, and its stream is closed at the latest when
    the lease of its worker is over, whoever of the two was the last to know.
    """
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    # The pool takes seconds to replace a lost process; several workers share the wait.
    parts, kills = times(2, 4), times(6, 200)
    with ThreadPoolExecutor(parts) as pool:
        outcomes = list(
            pool.map(_kill_again_and_again, range(seed, seed + parts), [kills / parts] * parts)
        )
    report = Report("pool process killed at a random moment (acks_late)")
    moments: Counter[str] = Counter()
    for part, hit in outcomes:
        report.add(part)
        moments.update(hit)
    report.notes.update(moments)
    assert report.injected >= kills
    report.assert_clean()


def _kill_again_and_again(seed: int, kills: float) -> tuple[Report, Counter[str]]:
    report, moments = Report(""), Counter[str]()
    with (
        ValkeyProcess() as server,
        worker(
            "tests.apps.soak_app",
            server,
            concurrency=1,
            env={"CELERY_STREAMS_ORPHAN_TIMEOUT": str(ORPHAN_TIMEOUT)},
        ) as running,
        Client.of(running, orphan_timeout=ORPHAN_TIMEOUT) as client,
    ):
        killer = _Killer(client, random.Random(seed), moments)
        for _ in range(2):  # the first one warms the process up
            killer.run(server.url, 0, report)
        while report.injected < kills:
            killer.run(server.url, 2, report)
    return report, moments


class _Killer:
    """Sends runs to a worker and kills its process under them."""

    def __init__(self, client: Client, chance: random.Random, moments: Counter[str]) -> None:
        self._client = client
        self._chance = chance
        self._moments = moments
        self._undisturbed = 0.0

    def run(self, url: str, kills: int, report: Report) -> None:
        """One run; its process is killed up to ``kills`` times, until the run is over."""
        began = time.monotonic()
        result = self._client.app.send_task(TASK, (TO, PACE))
        slot = Slot.run(result.id)
        for _ in range(kills):
            report.injected += 1
            if self._kill(slot) == OVER:
                break
        attempts = result.get(timeout=90)
        eventually(
            lambda: self._client.streams.end_if_over(slot.owner) and self._head(slot).closed,
            f"the end of {slot}",
            timeout=ORPHAN_TIMEOUT + VISIBILITY_TIMEOUT + 10,
        )
        if not kills:
            self._undisturbed = time.monotonic() - began
        assert self._head(slot).closed == "SUCCESS"
        _check(url, slot, attempts, report)

    def _kill(self, slot: Slot) -> str:
        running = self._client.worker
        if self._chance.randrange(AIMED) == 0:
            eventually(lambda: self._end(slot) > TO * 3 // 4, f"the end of {slot}", every=0.001)
            time.sleep(self._chance.uniform(0, 0.01))
        else:
            # From the moment the task is sent (again) until after its end.
            time.sleep(self._chance.uniform(0, 1.2 * self._undisturbed))
        killed = running.kill_child()
        moment = self._moment(slot)
        self._moments[f"kills {moment}"] += 1
        eventually(
            lambda: [pool.pid for pool in running.children] not in ([], [killed]),
            "another pool process",
        )
        return moment

    def _moment(self, slot: Slot) -> str:
        end = self._end(slot)
        if end == TO:
            return OVER if self._head(slot).closed else "before the close"
        return "in mid-stream" if end else "before a chunk"

    def _head(self, slot: Slot) -> Head:
        return self._client.streams.runtime.store.head(slot)

    def _end(self, slot: Slot) -> int:
        with suppress(StreamNotFound):
            return self._head(slot).end
        return 0


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
    assert attempts >= order[-1]
