"""The slot's lock, its holders killed and frozen, again and again."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from celery_streams.slots import Slot
from tests.credentials.fleet import (
    LAYOUT,
    SLOT,
    Member,
    Waiters,
    get_at_once,
    get_inside,
    listen_barely,
    processes,
)
from tests.servers import ServerProcess
from tests.soak.harness import Report

pytestmark = pytest.mark.soak

Times = Callable[[int, int], int]
LEASE = 0.3


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_cold_slot_is_initialized_once_however_many_ask(
    server: ServerProcess, times: Times
) -> None:
    """64 processes meet at a barrier and ask for the same slot.

    How long after the holder's return the slowest has its credentials is printed only: most do
    not wait yet when they come, but for the processor, to ask for the first time.
    """
    report = Report("cold slot hit by 64 processes at once")
    slowest: list[float] = []
    for _ in range(times(1, 20)):
        server.flush()
        context = processes()
        barrier, results = context.Barrier(64), context.Queue()
        members = [
            context.Process(target=get_at_once, args=(server.url, 0.02, barrier, results))
            for _ in range(64)
        ]
        for member in members:
            member.start()
        outcomes = [results.get(timeout=60) for _ in members]
        for member in members:
            member.join(30)
        report.injected += 1
        report.initializes += sum(initializes for _, _, initializes, _ in outcomes)
        assert {mint for mint, *_ in outcomes} == {"mint-1"}
        (stored_at,) = (at for _, at, initializes, _ in outcomes if initializes)
        waited = (at - stored_at for _, at, _, waits in outcomes if waits)
        slowest.append(max(waited, default=0.0))
    median = statistics.median(slowest)
    report.notes["initializes"] = report.initializes
    report.notes["slowest waiter"] = f"{median * 1e3:.1f} ms (median)"
    print(f"\n{report}")
    assert report.initializes == report.injected


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_the_slowest_of_64_waiters_returns_within_50_ms(
    server: ServerProcess, times: Times
) -> None:
    """From the moment ``initialize`` is done: storing included.

    A waiter is a process that waits when the credentials come, so ``initialize`` ends once all
    64 are asleep on their subscriptions. From then on they share the processors. A machine too
    busy for that limit is measured by how fast one message wakes 64 processes that only
    receive it: waiters take at most three times as long.
    """
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(times(1, 5)):
        ours.append(_slowest_waiter(server))
        bare.append(_slowest_subscriber(server))
    slowest, floor = statistics.median(ours), statistics.median(bare)
    report = Report("holder of a lock that 64 processes wait for", injected=len(ours))
    report.notes["slowest waiter"] = f"{slowest * 1e3:.1f} ms (median)"
    report.notes["slowest bare subscriber"] = f"{floor * 1e3:.1f} ms (median)"
    print(f"\n{report}")
    if times(0, 1):  # a single round says nothing of time
        assert slowest <= max(0.050, 3 * floor)


def _slowest_waiter(server: ServerProcess) -> float:
    server.flush()
    initialized_at = 0.0

    def gather_waiters(slot: Slot) -> None:
        nonlocal initialized_at
        waiters.gather()
        initialized_at = time.monotonic()

    with (
        Waiters(server.url, 64) as waiters,
        Member(server.url, lock_lease=60, during=gather_waiters) as holder,
    ):
        minted = holder.get(SLOT)
        woken_at = waiters.dismiss()
        assert waiters.outcomes() == {(minted.mint_id, 1)}
        assert holder.authority.calls() == 1
    return woken_at - initialized_at


def _slowest_subscriber(server: ServerProcess) -> float:
    server.flush()
    with (
        Waiters(server.url, 64, target=listen_barely) as subscribers,
        redis.Redis.from_url(server.url) as client,
    ):
        subscribers.gather()
        published_at = time.monotonic()
        client.execute_command("SPUBLISH", LAYOUT.wake(SLOT), b"." * 200)
        return subscribers.dismiss() - published_at


@pytest.mark.timeout(600)
def test_a_killed_holder_always_has_a_successor(server: ServerProcess, times: Times) -> None:
    """SIGKILL inside ``initialize``: the next one takes over when the lease ends."""
    report = Report("lock holder killed while it initializes")
    for _ in range(times(2, 50)):
        server.flush()
        child, _, _ = _holder_inside(server.url)
        with Member(server.url) as successor:
            _signal(child, signal.SIGKILL)
            child.join(30)
            assert successor.get(SLOT).mint_id == "mint-2"
            report.initializes += successor.stats.snapshot().initializes
        report.injected += 1
    report.notes["successors' initializes"] = report.initializes
    print(f"\n{report}")
    assert report.initializes == report.injected


@pytest.mark.timeout(600)
def test_a_frozen_holders_late_store_is_always_refused(server: ServerProcess, times: Times) -> None:
    """SIGSTOP past the lease, then SIGCONT: what the successor installed stays installed."""
    report = Report("lock holder frozen past its lease")
    for _ in range(times(2, 50)):
        server.flush()
        child, go_on, results = _holder_inside(server.url)
        _signal(child, signal.SIGSTOP)
        with Member(server.url) as successor:
            assert successor.get(SLOT).mint_id == "mint-2"
            installed = successor.sealed()
            _signal(child, signal.SIGCONT)
            go_on.set()
            mint_id, _ = results.get(timeout=30)
            child.join(30)
            assert mint_id == "mint-2"
            assert successor.sealed() == installed
        report.injected += 1
    print(f"\n{report}")


def _holder_inside(url: str) -> tuple[Any, Any, Any]:
    """A process that holds the slot's lock and does not come back from ``initialize``."""
    context = processes()
    inside, go_on, results = context.Event(), context.Event(), context.Queue()
    child = context.Process(target=get_inside, args=(url, LEASE, inside, go_on, results))
    child.start()
    assert inside.wait(30)
    return child, go_on, results


def _signal(child: Any, number: int) -> None:
    assert child.pid is not None
    os.kill(child.pid, number)
