"""S2 under Celery: real workers of every pool, and event loops that read."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest

from celery_streams import ConfigurationError, Streams
from tests.conftest import SettingsFor
from tests.s2.conftest import Place, S2Backend
from tests.s2.member import connected
from tests.s2.tokens import TokenServer
from tests.servers import ValkeyProcess
from tests.workers import Pool, Worker, worker

_APP = "tests.s2.app"


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def running(
    request: pytest.FixtureRequest, valkey: ValkeyProcess, shared_tokens: TokenServer
) -> Iterator[Worker]:
    """A worker of the app, in each pool that works."""
    valkey.flush()
    with worker(
        _APP, valkey, pool=request.param, concurrency=2, streams_url=shared_tokens.url()
    ) as running:
        yield running


@pytest.fixture
def streams(running: Worker) -> Iterator[Streams]:
    """A client of it."""
    streams = connected(running.result_backend, running.streams_url, recheck_interval=0.2)
    yield streams
    streams.close()


def _send(running: Worker, task: str, *args: Any) -> Any:
    return running.app.send_task(f"{_APP}.{task}", args)


def test_a_task_streams_to_s2(running: Worker, streams: Streams) -> None:
    """Every chunk and the end of the run, for both readers, one of them there before it."""
    result = _send(running, "count", 3000)
    assert list(streams.read(result.id, timeout=20)) == list(range(3000))
    result.get(timeout=20)

    async def everything() -> list[Any]:
        async with streams.aread(result.id, timeout=20) as reader:
            return [chunk async for chunk in reader]

    assert asyncio.run(everything()) == list(range(3000))


def test_each_pool_process_starts_its_own_loop(running: Worker, streams: Streams) -> None:
    """After the fork: several tasks at once, in all of them."""
    results = [_send(running, "count", 200) for _ in range(6)]
    for result in results:
        result.get(timeout=20)
        assert list(streams.read(result.id, timeout=20)) == list(range(200))


def test_a_retry_goes_on(running: Worker, streams: Streams) -> None:
    """The attempt after it has taken the fence."""
    result = _send(running, "again", 100)
    assert list(streams.read(result.id, timeout=20)) == list(range(100))
    assert result.get(timeout=20) == 50
    assert streams.head(result.id).epoch == 2


def test_a_forked_child_opens_its_own_connections(place: Place, settings_for: SettingsFor) -> None:
    """Though the parent's are in use; both go on writing to one stream."""
    with S2Backend(settings_for(place.url)) as backend:
        writer = backend.writer()
        writer.append("parent")

        def child() -> None:
            assert backend.chunks() == ["parent"]
            backend.writer().append("child")

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(30)
        assert process.exitcode == 0
        writer.append("parent again")
        assert backend.chunks() == ["parent", "child", "parent again"]


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_pools_are_refused_with_the_names_of_those_that_work(
    valkey: ValkeyProcess, shared_tokens: TokenServer, pool: Pool
) -> None:
    """The first task that writes says so; nothing hangs."""
    with worker(
        _APP, valkey, pool=pool, queue=f"{pool}-queue", streams_url=shared_tokens.url()
    ) as running:
        result = running.app.send_task(f"{_APP}.count", (3,))
        with pytest.raises(ConfigurationError) as refused:
            result.get(timeout=20)
    assert f"the S2 store cannot run under {pool}" in str(refused.value)
    assert "prefork, threads or solo" in str(refused.value)
