"""Celery runs over HTTP: from before their first chunk to however they end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams import Streams
from tests.gateway.following import Follower, create, serving_app, serving_runs
from tests.gateway.serving import Answer, Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

APP = "tests.apps.lifecycle_app"
RETRYING = "tests.apps.retrying_app"
SECRET = {"CELERY_STREAMS_SECRET": "test secret"}
ORPHAN_TIMEOUT = {**SECRET, "CELERY_STREAMS_ORPHAN_TIMEOUT": "2"}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyProcess]:
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def running(store: ValkeyProcess) -> Iterator[Worker]:
    with worker(RETRYING, store, concurrency=2, env=SECRET) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(store: ValkeyProcess) -> Iterator[Gateway]:
    with serving_runs(store.url, **SECRET) as gateway:
        yield gateway


@pytest.fixture
def run_id() -> str:
    return str(uuid.uuid4())


def path_of(run_id: str, key: str = "default") -> str:
    return f"/v1/stream/runs/{run_id}/{key}"


async def start(running: Worker, run_id: str, task: str, *args: Any, **options: Any) -> None:
    await asyncio.to_thread(running.app.send_task, f"{APP}.{task}", args, task_id=run_id, **options)


async def get(gateway: Gateway, path: str, **headers: str) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asyncio.to_thread(gateway.request, "GET", path, None, headers)


async def test_a_reader_that_comes_first_gets_every_chunk(
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """A reader that comes first gets every chunk."""
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        assert follower.states == ["PENDING"]
        await start(running, run_id, "count", 5000)
        await follower.ended()
    assert follower.values == [[run_id, number] for number in range(5000)]
    assert follower.closed
    assert follower.clean
    assert follower.states[-1] == "SUCCESS"
    assert follower.states in (["PENDING", "STARTED", "SUCCESS"], ["PENDING", "SUCCESS"])
    offsets = [control["streamNextOffset"] for control in follower.controls]
    assert offsets == sorted(offsets)
    assert "Traceback" not in gateway.log.text


async def test_every_way_of_reading_agrees(gateway: Gateway, running: Worker, run_id: str) -> None:
    """Every way of reading agrees."""
    path = path_of(run_id)
    poll = asyncio.create_task(get(gateway, f"{path}?live=long-poll&offset=-1"))
    await start(running, run_id, "count", 300, 0.001)
    values: list[Any] = []
    answer = await poll
    while "stream-closed" not in answer.headers:
        assert answer.status in (200, 204)
        values += answer.document if answer.body else []
        offset = answer.headers["stream-next-offset"]
        answer = await get(
            gateway,
            f"{path}?live=long-poll&offset={offset}&cursor={answer.headers['stream-cursor']}",
        )
    values += answer.document if answer.body else []
    everything = [[run_id, number] for number in range(300)]
    assert values == everything
    whole = await get(gateway, path)
    assert whole.document == everything
    assert whole.headers["stream-run-state"] == "SUCCESS"
    assert (await get(gateway, path, if_none_match=whole.headers["etag"])).status == 304
    for at in (0, 1, 7, 299, 300):  # batches begin and end anywhere
        token = f"{at:016d}"
        assert (await get(gateway, f"{path}?offset={token}")).document == everything[at:]
        async with Follower(gateway.port, path, token) as by_offset:
            await by_offset.ended()
        assert by_offset.values == everything[at:]
        async with Follower(gateway.port, path, "-1", last_event_id=token) as by_event:
            await by_event.ended()
        assert by_event.values == everything[at:]
        assert by_event.closed
    async with Follower(gateway.port, path, "-1", last_event_id=f"{300:016d}-closed") as told:
        await told.ended()
    assert told.status == 204
    now = await get(gateway, f"{path}?offset=now")
    assert (now.document, now.headers["stream-next-offset"]) == ([], f"{300:016d}")
    async with Follower(gateway.port, path, "now") as latest:
        await latest.ended()
    assert (latest.values, latest.closed) == ([], True)


@pytest.mark.parametrize(
    "offset",
    ["-2", "abc", "1.5", "%20", "", "0x1", "1e3", "99999999999999999999", "301", "-1-1", "²"],
)
async def test_what_is_no_offset(gateway: Gateway, offset: str) -> None:
    """What is no offset."""
    path = f"/v1/stream/sessions/offsets-{time.time_ns()}"
    create(gateway, path, 1)
    offset = "".join(f"%{byte:02x}" for byte in offset.encode())
    for query in ("", "&live=sse", "&live=long-poll"):
        answer = await get(gateway, f"{path}?offset={offset}{query}")
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/problem+json"
    answer = await get(gateway, f"{path}?live=sse", last_event_id="nonsense")
    assert answer.status == 400


async def test_a_run_that_writes_nothing_ends_its_readers(
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """A run that writes nothing ends its readers."""
    async with (
        Follower(gateway.port, path_of(run_id)) as one,
        Follower(gateway.port, path_of(run_id, "other"), "now") as two,
    ):
        await one.ready()
        await two.ready()
        await start(running, run_id, "pid")
        for each in (one, two):
            await each.ended()
            assert (each.values, each.closed, each.states[-1]) == ([], True, "SUCCESS")


@pytest.mark.parametrize("live", ["", "&live=long-poll", "&live=sse"])
async def test_a_run_that_does_it_all_between_two_looks_is_read_whole(
    store: ValkeyProcess, run_id: str, live: str
) -> None:
    """There is no stream; is the run over? It is, by now, and has left a stream to read."""
    with serving_app("tests.apps.short_runs_app", store.url, **SECRET) as gateway:
        if live.endswith("sse"):
            async with Follower(gateway.port, path_of(run_id)) as follower:
                await follower.ended()
            assert (follower.values, follower.closed) == ([0, 1, 2], True)
            return
        values: list[int] = []
        offset, closed = "-1", False
        while not closed:
            answer = await get(gateway, f"{path_of(run_id)}?offset={offset}{live}")
            assert answer.status in (200, 204)
            values += answer.document if answer.body else []
            offset = answer.headers["stream-next-offset"]
            closed = "stream-closed" in answer.headers
        assert values == [0, 1, 2]


@pytest.mark.parametrize(
    ("task", "args", "state", "values"),
    [
        ("hopeless", (), "FAILURE", [0, 1]),
        ("automatic", (), "SUCCESS", [1, 2, 3]),
        ("hard", (), "FAILURE", ["written"]),
        ("suicide", (), "FAILURE", ["last words"]),
        ("retry_then_die", (), "FAILURE", [1, 2]),
    ],
)
async def test_however_it_ends(
    gateway: Gateway, running: Worker, run_id: str, task: str, args: Any, state: str, values: Any
) -> None:
    """However it ends."""
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        await start(running, run_id, task, *args)
        await follower.ended(60)
    assert follower.values == values
    assert follower.closed
    assert follower.states[-1] == state


async def test_a_retry_shows_and_the_run_goes_on(
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """A retry shows and the run goes on."""
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        name = "tests.apps.retrying_app.pausing"
        await asyncio.to_thread(running.app.send_task, name, (3,), task_id=run_id)
        await follower.until(lambda self: "RETRY" in self.states, "RETRY")
        assert not follower.over
        assert (await get(gateway, path_of(run_id))).headers["stream-run-state"] == "RETRY"
        await follower.ended()
    assert follower.values == [1, 2]
    assert follower.states == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]


async def test_a_revoked_run(
    gateway: Gateway, running: Worker, run_id: str, tmp_path: Path
) -> None:
    """A revoked run."""
    async with Follower(gateway.port, path_of(run_id)) as follower:
        await follower.ready()
        await start(running, run_id, "wait_for", str(tmp_path / "never"), 3)
        await follower.until(lambda self: len(self.values) == 3, "its chunks")
        await asyncio.to_thread(running.app.control.revoke, run_id, terminate=True)
        await follower.ended()
    assert follower.values == [0, 1, 2]
    assert follower.closed
    assert follower.states[-1] == "REVOKED"


async def test_a_lost_worker(
    store: ValkeyProcess, gateway: Gateway, run_id: str, tmp_path: Path
) -> None:
    """A lost worker."""
    queue = f"lost-{run_id}"
    with worker(APP, store, queue=queue, concurrency=1, env=ORPHAN_TIMEOUT) as doomed:
        async with Follower(gateway.port, path_of(run_id)) as follower:
            await start(doomed, run_id, "wait_for", str(tmp_path / "never"), 3, queue=queue)
            await follower.until(lambda self: len(self.values) == 3, "its chunks")
            await asyncio.to_thread(doomed.kill)
            await follower.ended()
    assert follower.closed
    assert follower.states[-1] == "STALLED"
    answer = await get(gateway, path_of(run_id))
    assert answer.headers["stream-run-state"] == "STALLED"
    assert answer.headers["stream-closed"] == "true"


async def test_a_session_outlives_its_runs(gateway: Gateway, running: Worker, run_id: str) -> None:
    """A session outlives its runs."""

    def ends(values: list[Any]) -> int:
        return sum(value["type"] == "finish" for value in values)

    async with Follower(gateway.port, f"/v1/stream/sessions/{run_id}") as follower:
        await follower.ready()
        for number in range(3):
            answer = str(uuid.uuid4())
            await start(running, answer, "agent", run_id, [f"word {number}"])
            await follower.until(lambda self, n=number: ends(self.values) > n, "the answer")
            assert not follower.over
        words = [value["delta"] for value in follower.values if value["type"] == "text-delta"]
        assert words == ["word 0", "word 1", "word 2"]
        assert follower.states == []


async def test_what_was_trimmed_is_gone(store: ValkeyProcess, run_id: str) -> None:
    """What was trimmed is gone."""
    streams = Streams(url=store.url, secret="test secret", max_chunks=100)
    try:
        with serving_runs(store.url) as gateway:
            session = streams.session(run_id).out
            for number in range(300):
                session.append(number)
            path = f"/v1/stream/sessions/{run_id}"
            for query in ("?offset=-1", "?live=sse&offset=-1", "?live=long-poll&offset=5"):
                answer = await get(gateway, path + query)
                assert answer.status == 410
                assert answer.document["code"] == "offset-gone"
                earliest = answer.headers["stream-earliest-offset"]
            assert (await get(gateway, f"{path}?offset={earliest}")).document == list(
                range(int(earliest), 300)
            )
            async with Follower(gateway.port, path, earliest) as follower:
                await follower.until(lambda self: len(self.values) >= 100, "what is left")
                exposed = follower.answered["access-control-expose-headers"]
            assert "stream-earliest-offset" in exposed
    finally:
        streams.close()


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_text_and_bytes(gateway: Gateway, content_type: str) -> None:
    """Text and bytes."""
    path = f"/v1/stream/typed/{time.time_ns()}"
    parts = [b"one\ntwo\r\nthree", b" lead", b"", b"data: x\n\nevent: control\n", bytes(range(256))]
    if content_type == "text/plain":
        parts[-1] = "größer\u2028😀".encode()
    parts[2] = b"\n"
    headers = {"content-type": content_type}
    answer = await asyncio.to_thread(gateway.request, "PUT", path, parts[0], headers)
    assert answer.status == 201
    async with Follower(gateway.port, path) as follower:
        await follower.ready()
        for part in parts[1:]:
            await asyncio.to_thread(gateway.request, "POST", path, part, headers)
        await asyncio.to_thread(gateway.request, "POST", path, None, {"stream-closed": "true"})
        await follower.ended()
    assert (await get(gateway, path)).body == b"".join(parts)
    if content_type == "text/plain":
        assert "".join(follower.values) == b"".join(parts).decode().replace("\r\n", "\n")
    else:
        assert follower.answered["stream-sse-data-encoding"] == "base64"
        assert b"".join(follower.values) == b"".join(parts)


async def test_chunks_of_a_mebibyte(gateway: Gateway) -> None:
    """Chunks of a mebibyte."""
    path = f"/v1/stream/large/{time.time_ns()}"
    create(gateway, path)
    value = "x" * (1024 * 1024 - 2)
    async with Follower(gateway.port, path) as follower:
        await follower.ready()
        for _ in range(5):
            await asyncio.to_thread(gateway.append, path, value)
        await follower.until(lambda self: len(self.values) == 5, "all")
        assert set(follower.values) == {value}
    answer = await asyncio.to_thread(
        gateway.request, "POST", path, b'"%b"' % (b"x" * 1024 * 1024),
        {"content-type": "application/json"},
    )  # fmt: skip
    assert answer.status == 413  # at once, not when the time for a body is over
