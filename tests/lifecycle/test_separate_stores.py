"""Chunks in a store of their own, apart from the broker's and the results' server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.exceptions import WorkerLostError

from celery_streams.slots import Slot
from tests.lifecycle.client import Client
from tests.lifecycle.loops import in_loop
from tests.servers import Cluster, RedisProcess, ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, worker


@pytest.fixture(scope="module", params=["redis7", "cluster"])
def store(request: pytest.FixtureRequest) -> RedisProcess | Cluster:
    """Where the chunks are."""
    store: RedisProcess | Cluster = request.getfixturevalue(request.param)
    return store


@pytest.fixture(scope="module")
def broker() -> Iterator[ValkeyProcess]:
    """Where messages and results are."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def client(store: RedisProcess | Cluster, broker: ValkeyProcess) -> Iterator[Client]:
    """A client of a prefork worker that streams to ``store``."""
    with (
        worker("tests.lifecycle.step_app", broker, streams_url=store.url) as running,
        Client.of(running) as client,
    ):
        yield client


def test_whoever_sees_success_finds_every_chunk_and_the_end(
    client: Client, times: Callable[[int, int], int]
) -> None:
    """All chunks are there when the result is, and the end follows: for both readers."""

    async def read(run_id: str) -> tuple[list[Any], str | None]:
        reader = client.streams.aread(run_id, timeout=20)
        return [chunk async for chunk in reader], reader.closed

    for size in [1, 7, 100, 3000] * times(5, 50):
        run_id, result = client.run("count", size)
        assert result == size
        expected = [[run_id, number] for number in range(size)]
        assert client.chunks(run_id) == expected
        with client.streams.read(run_id, timeout=20) as reader:
            assert list(reader) == expected
        assert reader.closed == "SUCCESS"
        assert in_loop(client.streams, read(run_id)) == (expected, "SUCCESS")


def test_the_parent_closes_the_streams_of_a_child_that_is_killed(
    client: Client, times: Callable[[int, int], int], tmp_path: Path
) -> None:
    """SIGKILL from outside: every stream of the run ends, long before its lease would."""
    keys = ["default", "progress", "log"]
    for number in range(times(2, 20)):
        client.worker.wait_children()
        result = client.send("several", str(tmp_path / "never"), keys)
        (pid,) = client.wait_chunks(result.id, 1, keys[-1])
        client.worker.kill_child(pid)
        with pytest.raises(WorkerLostError):
            result.get(timeout=30)
        for key in keys:
            assert client.end(result.id, key) == "FAILURE"
            assert list(client.streams.read(result.id, key, timeout=20)) == [pid]
        assert client.streams.keys(result.id) == sorted(keys), number
    client.worker.wait_children()


def test_a_retry_goes_on_after_what_is_durable(
    client: Client, times: Callable[[int, int], int]
) -> None:
    """``self.retry()``: the second attempt has the first one's chunks, all of them."""
    for _ in range(times(5, 50)):
        run_id, attempts = client.run("again", 400)
        assert attempts == 3
        chunks = client.chunks(run_id)
        assert [chunk["number"] for chunk in chunks] == list(range(400))
        assert [chunk["attempt"] for chunk in chunks] == [1] * 200 + [2] * 100 + [3] * 100
        assert client.end(run_id) == "SUCCESS"


def test_a_redelivery_goes_on_after_what_a_killed_attempt_left(
    client: Client, times: Callable[[int, int], int]
) -> None:
    """Killed in a hot loop, part of its chunks never sent: no gap, nothing twice."""
    to = 20_000
    for _ in range(times(3, 50)):
        run_id, start = client.run("resuming", to)
        assert to // 4 <= start <= to // 2
        chunks = client.chunks(run_id)
        assert [number for _, number in chunks] == list(range(to))
        attempts = [attempt for attempt, _ in chunks]
        assert attempts == [1] * start + [2] * (to - start)
        assert client.end(run_id) == "SUCCESS"
    client.worker.wait_children()


def test_children_write_to_their_parent_s_stream(client: Client, tmp_path: Path) -> None:
    """``target="parent"`` from other processes, to a key that is on any of the nodes."""
    for number in range(5):
        path = tmp_path / str(number)
        result = client.send("parent", "parent", 4, str(path))
        chunks = client.wait_chunks(result.id, 5)
        path.touch()
        result.get(timeout=30)
        assert chunks[0] == "parent"
        writers = {run_id for run_id, _ in chunks[1:]}
        assert len(writers) == 4
        assert result.id not in writers
        assert client.end(result.id) == "SUCCESS"
        assert client.chunks(result.id) == chunks


def test_chunks_are_on_every_node_of_the_store_and_nowhere_else(
    client: Client, store: RedisProcess | Cluster, broker: ValkeyProcess
) -> None:
    """A cluster's nodes share the runs; the broker's server has no key of ours."""
    runs = [client.run("count", 1)[0] for _ in range(40)]
    logs = {client.streams.runtime.layout.log(Slot.run(run_id)).encode() for run_id in runs}
    held = [len(logs.intersection(node.client().keys("cs/*"))) for node in _nodes(store)]
    assert all(held)
    assert sum(held) == len(runs)
    for db in (0, BROKER_DB, RESULT_DB):
        with redis.Redis.from_url(broker.url_for(db=db)) as there:
            assert not there.keys("cs/*")


def _nodes(store: RedisProcess | Cluster) -> list[Any]:
    return list(store.nodes) if isinstance(store, Cluster) else [store]
