"""Runs whose chunks are on S2, over HTTP: the very tests of the Redis store."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial

import pytest

from celery_streams.stores.s2.state import PAYLOAD_BYTES
from tests.gateway import following, test_live_runs
from tests.gateway.conftest import anyio_backend
from tests.gateway.following import Follower, create
from tests.gateway.serving import Gateway
from tests.gateway.test_live_runs import *  # noqa: F403
from tests.s2.servers import ChunksOnS2, S2Lite
from tests.servers import ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, Worker

__all__ = ["anyio_backend"]


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def store(s2_lite: S2Lite) -> Iterator[ValkeyProcess]:
    """Gateways, workers and readers find the runs by the setting of its own."""
    with ChunksOnS2() as server, pytest.MonkeyPatch.context() as patch:
        redis_url = server.url_for()

        celerys = {
            "TEST_BROKER_URL": server.url_for(db=BROKER_DB),
            "TEST_RESULT_BACKEND": server.url_for(db=RESULT_DB),
        }
        patch.setenv("CELERY_STREAMS_REDIS_URL", redis_url)
        for name in ("serving_runs", "serving_app"):
            serving = partial(
                getattr(following, name), CELERY_STREAMS_REDIS_URL=redis_url, **celerys
            )
            patch.setattr(test_live_runs, name, serving)
        server.s2_url = s2_lite.url
        yield server


async def test_chunks_of_a_mebibyte(gateway: Gateway) -> None:  # type: ignore[no-redef]
    """S2's records are a little smaller: what does not fit is refused, and what does, is not."""
    path = f"/v1/stream/large/{time.time_ns()}"
    create(gateway, path)
    headers = {"content-type": "application/json"}
    body = json.dumps(["x" * (1024 * 1024 - 2)]).encode()
    answer = await asyncio.to_thread(gateway.request, "POST", path, body, headers)
    assert answer.status == 413
    assert answer.document["code"] == "too-large"
    value = "x" * (PAYLOAD_BYTES - 2)
    async with Follower(gateway.port, path) as follower:
        await follower.ready()
        await asyncio.to_thread(gateway.append, path, value)
        await follower.until(lambda self: len(self.values) == 1, "the chunk")
    assert follower.values == [value]


async def test_a_retry_shows_and_the_run_goes_on(  # type: ignore[no-redef]
    gateway: Gateway, running: Worker, run_id: str
) -> None:
    """As on Redis, but for the first STARTED: no chunk says so here, and a recheck may be late."""
    async with Follower(gateway.port, test_live_runs.path_of(run_id)) as follower:
        await follower.ready()
        name = "tests.apps.retrying_app.pausing"
        await asyncio.to_thread(running.app.send_task, name, (3,), task_id=run_id)
        await follower.until(lambda self: "RETRY" in self.states, "RETRY")
        assert not follower.over
        await follower.ended()
    assert follower.values == [1, 2]
    assert follower.states[0] == "PENDING"
    assert follower.states[-3:] == ["RETRY", "STARTED", "SUCCESS"]
