"""How a run is doing reaches its readers when it changes, not with the next look at the log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams import Slot, Streams
from celery_streams.contracts import Attempt
from celery_streams.redis.calls import Call
from tests.gateway.following import Follower, serving_runs
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

RETRYING = "tests.apps.retrying_app"
SECRET = {"CELERY_STREAMS_SECRET": "test secret"}
#: Seconds between looks at silent streams, in which no test waits for one.
NEVER = {"CELERY_STREAMS_RECHECK_INTERVAL": "60"}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyProcess]:
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def running(store: ValkeyProcess) -> Iterator[Worker]:
    # One process: a second one could start the next attempt before the first has ended its own.
    with worker(RETRYING, store, concurrency=1, env=SECRET) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(store: ValkeyProcess) -> Iterator[Gateway]:
    with serving_runs(store.url, **SECRET, **NEVER) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log.text


@pytest.fixture(scope="module")
def streams(store: ValkeyProcess) -> Iterator[Streams]:
    streams = Streams(url=store.url, secret="test secret")
    yield streams
    streams.close()


@pytest.fixture
def run_id() -> str:
    return str(uuid.uuid4())


def path_of(run_id: str, key: str = "default") -> str:
    return f"/v1/stream/runs/{run_id}/{key}"


async def start(running: Worker, run_id: str, task: str, *args: Any) -> None:
    await asyncio.to_thread(running.app.send_task, task, args, task_id=run_id)


async def test_a_reader_sees_every_state_of_a_run_that_retries_at_once(
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """However short the pause between its attempts; each state once, in order."""
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        await start(running, run_id, f"{RETRYING}.pausing", 0)
        await follower.ended()
    assert follower.values == [1, 2]
    assert follower.states == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    assert all(control.get("upToDate") for control in follower.controls)


async def test_who_reads_another_stream_of_the_run_sees_them_too(
    gateway: Gateway, running: Worker, streams: Streams, run_id: str
) -> None:
    """A stream that this run never writes to; its application does, and that is no STARTED."""
    with streams.write_to(run_id, "progress", create=True) as writer:
        writer.append("before it starts")
        async with Follower(gateway.port, path_of(run_id, "progress")) as follower:
            await follower.ready()
            writer.append("while it waits")
            await follower.until(lambda self: len(self.values) == 2, "both")
            assert follower.states == ["PENDING"]
            await start(running, run_id, f"{RETRYING}.pausing", 0)
            await follower.ended()
    assert follower.states == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]


async def test_a_run_that_never_writes_ends_those_who_await_its_stream(
    gateway: Gateway, streams: Streams, run_id: str
) -> None:
    """It wrote to another one, or had children who might have."""
    runs = streams.runtime.registry
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        await asyncio.to_thread(runs.begin, Attempt(run_id, "second", generation=1))
        await follower.until(lambda self: "STARTED" in self.states, "STARTED")
        head = await asyncio.to_thread(gateway.request, "HEAD", path_of(run_id))
        assert (head.status, head.headers["stream-run-state"]) == (200, "STARTED")
        await asyncio.to_thread(
            runs.finish, Attempt(run_id, "second", generation=1), "FAILURE", always=True
        )
        await follower.ended()
    assert follower.closed
    assert follower.states == ["PENDING", "STARTED", "FAILURE"]


async def test_a_revoked_run_ends_at_once(
    gateway: Gateway, running: Worker, run_id: str, tmp_path: Path
) -> None:
    """The worker's parent process says so, and every reader is told."""
    async with (
        Follower(gateway.port, path_of(run_id)) as one,
        Follower(gateway.port, path_of(run_id), "now") as two,
    ):
        await one.ready()
        await two.ready()
        await start(running, run_id, "tests.apps.lifecycle_app.wait_for", str(tmp_path / "no"), 3)
        await one.until(lambda self: len(self.values) == 3, "its chunks")
        await asyncio.to_thread(running.app.control.revoke, run_id, terminate=True)
        for each in (one, two):
            await each.ended()
            assert each.states == ["PENDING", "STARTED", "REVOKED"]


async def test_a_state_that_was_not_told_is_found(
    store: ValkeyProcess, streams: Streams, run_id: str
) -> None:
    """Also where entries keep coming: the workers may be older than what they are to tell."""
    slot, attempt = Slot.run(run_id), Attempt(run_id, "silent")
    link, layout = streams.runtime.link, streams.runtime.layout
    with streams.write_to(run_id, create=True) as writer, serving_runs(store.url) as gateway:
        writer.append(0)
        async with Follower(gateway.port, path_of(run_id)) as follower:
            await follower.ready()
            assert follower.states == ["PENDING"]
            # What an older version's append records of its run.
            record = ("attempt", attempt.attempt_id, "generation", 0, "epoch", 1, "lease", 1 << 50)
            await asyncio.to_thread(link.call, Call("HSET", (layout.owner(slot),), record))
            while "STARTED" not in follower.states:
                count = len(follower.values)
                await asyncio.to_thread(writer.append, count)
                await follower.until(lambda self, n=count: len(self.values) > n, "the chunk")
    assert follower.states == ["PENDING", "STARTED"]


@pytest.mark.parametrize("path", ["runs/{}/default", "runs/{}/progress", "sessions/{}/out"])
async def test_head_and_get_agree_on_a_stream_that_is_not_there_yet(
    gateway: Gateway, run_id: str, path: str
) -> None:
    """Its task may yet open it; nobody can tell a run that is waiting from one that is not."""
    path = f"/v1/stream/{path.format(run_id)}"
    get = await asyncio.to_thread(gateway.request, "GET", path)
    head = await asyncio.to_thread(gateway.request, "HEAD", path)
    assert (get.status, head.status) == (200, 200)
    for name in ("content-type", "stream-next-offset", "stream-run-state"):
        assert head.headers.get(name) == get.headers.get(name)
    assert head.headers.get("stream-run-state") == ("PENDING" if "/runs/" in path else None)


async def test_nobody_but_a_client_creates_a_clients_stream(gateway: Gateway, run_id: str) -> None:
    """The protocol's ``404``, for both."""
    for method in ("HEAD", "GET"):
        answer = await asyncio.to_thread(gateway.request, method, f"/v1/stream/{run_id}")
        assert answer.status == 404


async def test_head_tells_how_a_run_without_streams_ended(
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """The result backend knows."""
    result = running.app.send_task("tests.apps.lifecycle_app.pid", task_id=run_id)
    await asyncio.to_thread(result.get, timeout=20)
    for method in ("HEAD", "GET"):
        answer = await asyncio.to_thread(gateway.request, method, path_of(run_id))
        assert (answer.status, answer.headers["stream-run-state"]) == (200, "SUCCESS")
        assert answer.headers["stream-closed"] == "true"
