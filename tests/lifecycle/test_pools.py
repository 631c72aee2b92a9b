"""Every pool that Celery has, each with a real worker process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery.result import AsyncResult

from tests.lifecycle.client import APP, Client
from tests.servers import ValkeyProcess
from tests.workers import Pool, worker


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet", "solo"])
def test_a_client_that_sees_success_finds_every_chunk_in_order(
    lifecycle_server: ValkeyProcess, pool: Pool, times: Callable[[int, int], int]
) -> None:
    """In every pool: tasks at once do not mix, nothing is missing, streams end with the state."""
    tasks, size = times(12, 200), 300
    with (
        worker(APP, lifecycle_server, pool=pool, concurrency=4, queue=pool) as running,
        Client.of(running) as client,
    ):
        results = [client.send("count", size, queue=pool) for _ in range(tasks)]
        for result in results:
            assert result.get(timeout=30) == size
            assert client.chunks(result.id) == [[result.id, number] for number in range(size)]
        for result in results:
            assert client.end(result.id) == "SUCCESS"
        failed = client.send("hooked", True, queue=pool)
        with pytest.raises(ValueError, match="as asked"):
            failed.get(timeout=30)
        assert client.end(failed.id) == "FAILURE"
        assert client.chunks(failed.id) == ["before_start", "body", "on_failure", "after_return"]
        if pool != "solo":
            _a_slow_task_does_not_hold_up_the_chunks_of_another(client, pool)


def _a_slow_task_does_not_hold_up_the_chunks_of_another(client: Client, queue: str) -> None:
    """The flusher of a process serves all its tasks while they run, monkey-patched or not."""
    slow = client.send("count", 30, 0.05, queue=queue)
    client.wait_chunks(slow.id, 3)
    quick = client.send("count", 5, queue=queue)
    assert quick.get(timeout=30) == 5
    assert len(client.chunks(quick.id)) == 5
    assert slow.get(timeout=30) == 30
    assert client.chunks(slow.id) == [[slow.id, number] for number in range(30)]


def test_threads_of_one_task_share_its_streams(prefork: Client) -> None:
    """Threads that meet at the first write open one set of writers; each keeps its order."""
    for _ in range(10):
        run_id, _ = prefork.run("threaded", 8, 20)
        chunks = prefork.chunks(run_id)
        assert len(chunks) == 8 * 20
        for thread in range(8):
            assert [n for who, n in chunks if who == thread] == list(range(20))


def test_every_task_gets_a_process_of_its_own(lifecycle_server: ValkeyProcess) -> None:
    """With one task a child, each fork begins anew and its first task streams."""
    with (
        worker(
            APP,
            lifecycle_server,
            queue="one",
            arguments=("--max-tasks-per-child", "1"),
        ) as running,
        Client.of(running) as client,
    ):
        for result in [client.send("count", 50, queue="one") for _ in range(6)]:
            assert result.get(timeout=40) == 50
            assert client.chunks(result.id) == [[result.id, number] for number in range(50)]


def test_greenlets_that_merge_async_sources_take_turns(lifecycle_server: ValkeyProcess) -> None:
    """asyncio runs one event loop a thread, which all greenlets are: the next one waits for it,
    and no longer than ``drain_timeout``.
    """
    app = "tests.lifecycle.greenlet_app"
    env = {"CELERY_STREAMS_DRAIN_TIMEOUT": "4"}
    with (
        worker(
            app, lifecycle_server, pool="gevent", concurrency=4, queue="greenlets", env=env
        ) as running,
        Client.of(running) as client,
    ):

        def merge(count: int, pause: float) -> AsyncResult[int]:
            return client.app.send_task(f"{app}.merge", (count, pause), queue="greenlets")

        results = [merge(5, 0.1) for _ in range(3)]
        assert [result.get(timeout=20) for result in results] == [5, 5, 5]
        for result in results:
            assert client.chunks(result.id) == list(range(5))
        long = merge(2, 4)
        client.wait_chunks(long.id, 1)
        with pytest.raises(Exception, match="prefork or the threads pool"):
            merge(1, 0).get(timeout=20)
        assert long.get(timeout=20) == 2
