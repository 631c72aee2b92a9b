"""Connections cut, replies lost, servers killed: nothing lost, nothing twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from celery_streams import Slot, Streams
from tests.servers import Cluster, Proxy, ValkeyProcess
from tests.servers.children import eventually
from tests.servers.proxy import Direction
from tests.soak.harness import Report, streams_at, wait_for_progress, writing

pytestmark = pytest.mark.soak

Times = Callable[[int, int], int]
SLOT = Slot.run("soak")


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A server of this test's own, with its append-only file."""
    with ValkeyProcess(aof=True) as server:
        yield server


@pytest.fixture
def direct(server: ValkeyProcess) -> Iterator[Streams]:
    """What the test sees, whatever happens to the writers."""
    streams = streams_at(server.url)
    yield streams
    streams.close()


def test_connections_cut_at_random_bytes_lose_nothing(
    server: ValkeyProcess, direct: Streams, times: Times
) -> None:
    """A command cut anywhere, or its reply, is sent again and applied once."""
    report = Report("connection cut at a random byte")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Proxy(server.port) as proxy, writing(_via(proxy), SLOT) as fleet:
        for _ in range(times(10, 500)):
            direction: Direction = chance.choice(("up", "down"))
            limit = 20_000 if direction == "up" else 300
            assert proxy.cut_after(chance.randrange(limit), direction).wait(60)
            report.injected += 1
        fleet.finish(server.url, report).assert_clean()


def test_a_reply_lost_after_the_append_was_applied_duplicates_nothing(
    server: ValkeyProcess, direct: Streams, times: Times
) -> None:
    """The resent batch is recognized by its sequence number."""
    report = Report("reply lost after the append was applied")
    with Proxy(server.port) as proxy, writing(_via(proxy), SLOT) as fleet:
        for _ in range(times(10, 500)):
            assert proxy.cut_reply_to(b"EVALSHA").wait(60)
            # A cut that always waits meets every attempt of every writer, until they give up.
            wait_for_progress(direct, SLOT)
            report.injected += 1
        fleet.finish(server.url, report).assert_clean()


def test_a_killed_and_restarted_server_loses_nothing(
    server: ValkeyProcess, direct: Streams, times: Times
) -> None:
    """What was acknowledged is in the append-only file; the rest is sent again."""
    report = Report("server killed and restarted")
    with writing(server.url, SLOT) as fleet:
        for _ in range(times(2, 25)):
            wait_for_progress(direct, SLOT)
            server.kill()
            server.restart()
            eventually(server.client().ping, "the server answers")
            report.injected += 1
        wait_for_progress(direct, SLOT)
        fleet.finish(server.url, report).assert_clean()


@pytest.mark.timeout(600)
def test_a_cluster_failover_under_load_loses_nothing(times: Times) -> None:
    """With ``wait_replicas`` a batch is acknowledged once the replica has it, which takes over."""
    report = Report("cluster primary killed, replica takes over")
    with Cluster(replicas=1) as cluster:
        url = cluster.url
        direct = streams_at(url)
        with writing(url, SLOT, writers=4, wait_replicas=1) as fleet:
            for _ in range(times(1, 8)):
                wait_for_progress(direct, SLOT)
                key = direct.runtime.layout.meta(SLOT)
                dead = cluster.kill_primary_of(key)
                cluster.wait_taken_over(key, dead)
                dead.start()
                cluster.wait_ok()
                report.injected += 1
                wait_for_progress(direct, SLOT)
            fleet.finish(cluster.url, report).assert_clean()
        direct.close()


def _via(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"
