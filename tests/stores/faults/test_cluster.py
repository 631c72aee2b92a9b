"""A primary of a cluster dies and its replica takes over, under load: nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_streams.slots import Slot
from tests.servers import Cluster
from tests.stores.faults.bench import Bench
from tests.stores.faults.conftest import Open
from tests.stores.faults.test_follow import Following, numbers, wait_until_live

SLOT = Slot.run("failing-over")


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    """Three primaries with a replica each."""
    with Cluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture
def durable(replicated: Cluster, open_bench: Open) -> Bench:
    """A store that waits for a replica."""
    replicated.flush()
    return open_bench(replicated.url, wait_replicas=1, socket_timeout=1.0)


def test_a_killed_primary_loses_nothing_that_a_replica_had_to_confirm(
    replicated: Cluster, durable: Bench, times
) -> None:
    """Writer and follower find the new primary by themselves."""
    writer = durable.writer(SLOT)
    following = Following(durable, SLOT, idle=0.5)
    for _ in range(times(1, 10)):
        for _ in range(20):
            writer.insist(writer.seq)
        key = durable.layout.meta(SLOT)
        dead = replicated.kill_primary_of(key)
        # Without a replica of its own the promoted one cannot confirm: the old one returns.
        replicated.wait_taken_over(key, dead)
        dead.start()
        replicated.wait_ok()
        for _ in range(20):
            writer.insist(writer.seq)
    writer.close()
    assert following.join() == durable.values(SLOT) == numbers(writer.seq)


def test_an_orderly_failover_is_followed_by_redirections(
    replicated: Cluster, durable: Bench
) -> None:
    """The old primary answers MOVED, and ends the subscription: nobody waits for silence."""
    writer = durable.writer(SLOT)
    following = Following(durable, SLOT)
    for _ in range(2):
        writer.insist(writer.seq)
        following.wait_for(writer.seq)
        wait_until_live(durable, SLOT)
        replicated.failover(durable.layout.meta(SLOT))
        writer.insist(writer.seq)
        following.wait_for(writer.seq)
    writer.close()
    assert following.join() == numbers(writer.seq)
