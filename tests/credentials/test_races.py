"""Whole fleets on one slot: who initializes, who waits, and what becomes of the slow and dead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams.contracts import JSON, Credentials
from celery_streams.credentials.lock import Found, Held, Lease, SlotLock
from celery_streams.errors import StoreUnavailable
from celery_streams.redis.client import RedisLink
from celery_streams.redis.connect import SyncConnection
from celery_streams.slots import Slot
from tests.credentials.conftest import Join
from tests.credentials.fleet import (
    LAYOUT,
    SLOT,
    CountingAuthority,
    Member,
    Waiters,
    get_at_once,
    get_inside,
    in_threads,
    listeners,
    processes,
)
from tests.servers import Cluster, ServerProcess
from tests.servers.children import eventually


def interleaved(step: Callable[[], object]) -> type[RedisLink]:
    """Links that run ``step`` between the look that finds the lock held and the subscription."""

    class Interleaved(RedisLink):
        def connection(self, channel: str) -> SyncConnection:
            step()
            return super().connection(channel)

    return Interleaved


def pid_of(child: Any) -> int:
    assert child.pid is not None
    return int(child.pid)


@pytest.mark.alone
def test_64_processes_on_a_cold_slot_initialize_once(server: ServerProcess) -> None:
    """All start at once and get the same credentials; the call takes 20 ms."""
    count = 64
    context = processes()
    barrier, results = context.Barrier(count), context.Queue()
    children = [
        context.Process(target=get_at_once, args=(server.url, 0.02, barrier, results))
        for _ in range(count)
    ]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert {mint for mint, *_ in outcomes} == {"mint-1"}
    assert sum(initializes for _, _, initializes, _ in outcomes) == 1
    authority = CountingAuthority(server.url)
    assert authority.calls() == 1
    authority.link.close()


@pytest.mark.alone
def test_64_waiting_processes_are_woken_by_the_store_itself(server: ServerProcess) -> None:
    """All of them are asleep when it comes, and have its credentials long before the lease
    of 60 s ends. ``make soak`` measures how long before."""
    with Waiters(server.url, 64) as waiters, Member(server.url, lock_lease=60) as holder:
        holder.authority.during = lambda slot: waiters.gather()
        minted = holder.get(SLOT)
        waiters.dismiss()
        assert waiters.outcomes() == {(minted.mint_id, 1)}
        assert holder.authority.calls() == 1


def test_waiters_of_a_failed_holder_try_themselves(join: Join) -> None:
    """A waits for B; B fails and gets the error; A initializes at once, not after the lease."""
    failing, waiting = join(lock_lease=60), join(lock_lease=60)

    def fail_once_awaited(slot: Slot) -> None:
        eventually(lambda: listeners(failing.link) == 1, "somebody waits")
        raise RuntimeError("down")

    failing.authority.during = fail_once_awaited
    outcomes: list[Any] = []
    holder = threading.Thread(
        target=lambda: outcomes.extend(in_threads(1, lambda: failing.get(SLOT)))
    )
    holder.start()
    eventually(failing.locked, "the lock is taken")
    started = time.monotonic()
    assert waiting.get(SLOT).mint_id == "mint-2"
    assert time.monotonic() - started < 30
    holder.join()
    assert isinstance(outcomes[0], RuntimeError)


def test_a_waiter_that_subscribes_after_the_release_does_not_wait(join: Join) -> None:
    """The lost wake-up: the holder is done between the waiter's look and its subscription.

    It finds the credentials when it looks again, at once instead of after a lease of 60 s.
    """
    go_on = threading.Event()
    holder = join(lock_lease=60, during=lambda slot: go_on.wait(30))
    thread = threading.Thread(target=lambda: holder.get(SLOT))
    thread.start()
    eventually(holder.locked, "the lock is taken")

    def let_the_holder_finish() -> None:
        go_on.set()
        thread.join(30)
        assert not holder.locked()

    waiter = join(lock_lease=60, link_class=interleaved(let_the_holder_finish))
    started = time.monotonic()
    assert waiter.get(SLOT).mint_id == "mint-1"
    assert time.monotonic() - started < 30
    assert waiter.stats.snapshot().lock_waits == 1


def test_a_waiter_that_subscribes_after_a_failure_takes_the_lock(join: Join) -> None:
    """The same window, when the holder left nothing behind."""
    link = join().link
    lock = SlotLock(link, LAYOUT, lease=60)
    lease = lock.find_or_lock(SLOT)
    assert isinstance(lease, Lease)
    waiter = join(link_class=interleaved(lambda: lock.release(lease)))
    started = time.monotonic()
    assert waiter.get(SLOT).mint_id == "mint-1"
    assert time.monotonic() - started < 30


def test_a_killed_holder_is_succeeded_after_its_lease(server: ServerProcess) -> None:
    """SIGKILL while it initializes: nobody is told, so the waiter takes over when the lease
    ends, and not before."""
    lease = 1.0
    context = processes()
    inside, go_on, results = context.Event(), context.Event(), context.Queue()
    child = context.Process(target=get_inside, args=(server.url, lease, inside, go_on, results))
    child.start()
    assert inside.wait(30)
    with Member(server.url) as successor:
        os.kill(pid_of(child), signal.SIGKILL)
        child.join(30)
        assert successor.locked()
        assert successor.get(SLOT).mint_id == "mint-2"
        assert successor.authority.calls() == 2
        assert successor.stats.snapshot().lock_waits == 1


def test_a_frozen_holder_uses_its_successors_credentials(server: ServerProcess) -> None:
    """SIGSTOP past the lease, then SIGCONT: its late store is refused, and what it minted is
    thrown away."""
    context = processes()
    inside, go_on, results = context.Event(), context.Event(), context.Queue()
    child = context.Process(target=get_inside, args=(server.url, 0.5, inside, go_on, results))
    child.start()
    assert inside.wait(30)
    os.kill(pid_of(child), signal.SIGSTOP)
    with Member(server.url) as successor:
        installed = successor.get(SLOT)
        assert installed.mint_id == "mint-2"
        sealed = successor.sealed()
        os.kill(pid_of(child), signal.SIGCONT)
        go_on.set()
        assert results.get(timeout=30) == ("mint-2", 1)
        child.join(30)
        assert successor.sealed() == sealed
        assert successor.authority.calls() == 2


def test_a_holder_that_overran_can_neither_store_nor_unlock(join: Join) -> None:
    """Its successor's lock and the successor's credentials stay."""
    link = join().link
    late, successor = SlotLock(link, LAYOUT, lease=0.01), SlotLock(link, LAYOUT, lease=60)
    overrun = late.find_or_lock(SLOT)
    assert isinstance(overrun, Lease)
    eventually(lambda: not link.client.exists(LAYOUT.lock(SLOT)), "the lease ends")
    lease = successor.find_or_lock(SLOT)
    assert isinstance(lease, Lease)
    assert not late.store(overrun, b"late", 60)
    assert not late.release(overrun)
    assert isinstance(late.find_or_lock(SLOT), Held)
    assert successor.store(lease, b"good", 60)
    assert late.find_or_lock(SLOT) == Found(b"good")
    assert not late.store(overrun, b"late", 60)
    assert late.find_or_lock(SLOT) == Found(b"good")


def test_an_initialize_that_never_keeps_the_lease_ends_in_an_error(join: Join) -> None:
    """Three overruns in a row: the caller is told which setting is too small."""
    member = join(lock_lease=0.01)
    member.authority.during = lambda slot: eventually(lambda: not member.locked(), "the lease ends")
    with pytest.raises(StoreUnavailable, match="CELERY_STREAMS_LOCK_LEASE"):
        member.get(SLOT)
    assert member.authority.calls() == 3
    assert member.sealed() is None


def test_waiting_is_bounded_however_often_the_lock_changes_hands(join: Join) -> None:
    """Nobody waits longer than ``lock_lease + retry_timeout``; the error says for what."""
    member = join(lock_lease=0.2, retry_timeout=0.2)
    member.link.client.set(LAYOUT.lock(SLOT), "somebody", px=60_000)
    with pytest.raises(StoreUnavailable, match=r"waited 0\.4 s"):
        member.get(SLOT)
    assert member.authority.calls() == 0


def test_a_fleet_whose_credentials_are_revoked_initializes_once_more(join: Join) -> None:
    """Eight processes' caches hold them; each evicts and asks again, all at the same time."""
    members = [join() for _ in range(8)]
    old = [member.get(SLOT) for member in members]
    queue = list(zip(members, old, strict=True))

    def write_again() -> Credentials:
        member, rejected = queue.pop()
        member.cache.evict(rejected)
        return member.get(SLOT)

    renewed = in_threads(len(members), write_again)
    assert {credentials.mint_id for credentials in renewed} == {"mint-2"}
    assert members[0].authority.calls() == 2


def test_a_cluster_keeps_a_slots_keys_and_channel_together(cluster: Cluster) -> None:
    """Minting, waiting for another holder, evicting: each on the node that owns the slot."""
    cluster.flush()
    with (
        Member(cluster.url, lock_lease=60) as holder,
        Member(cluster.url, lock_lease=60) as waiter,
    ):
        slots = [Slot.run(f"run-{number}") for number in range(6)]
        waits = threading.Semaphore(0)

        def until_awaited(slot: Slot) -> None:
            waits.release()
            node = cluster.primary_of(LAYOUT.wake(slot)).client()
            command = "PUBSUB SHARDNUMSUB"
            eventually(
                lambda: node.execute_command(command, LAYOUT.wake(slot))[0][1] == 1, "awaited"
            )

        holder.authority.during = until_awaited
        for slot in slots:
            thread = threading.Thread(target=holder.get, args=(slot,))
            thread.start()
            assert waits.acquire(timeout=30)
            credentials = waiter.get(slot, content_type=JSON)
            thread.join(30)
            assert credentials == holder.get(slot)
            assert waiter.cache.evict(credentials)
        assert [holder.authority.calls(slot) for slot in slots] == [1] * 6
        assert waiter.stats.snapshot().lock_waits == 6
