"""The same turns on every kind of server, and in every pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chat.client import Gates, Page, serving_agents
from tests.chat.conftest import APP, SETTINGS
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="module",
    params=["cluster solo", "redis7 threads", "valkey gevent", "valkey eventlet"],
)
def agents(request: pytest.FixtureRequest, store: ValkeyProcess) -> Iterator[Worker]:
    """A worker whose streams are on one kind of server, in one kind of pool."""
    kind, pool = request.param.split()
    url = store.url if kind == "valkey" else request.getfixturevalue(kind).url
    options = {"pool": pool, "streams_url": url, "concurrency": 1 if pool == "solo" else 4}
    with worker(APP, store, env=SETTINGS, **options) as started:
        yield started


@pytest.fixture
def page(agents: Worker) -> Iterator[Page]:
    with ExitStack() as stack:
        yield Page(stack.enter_context(serving_agents(agents)))


async def test_turns_work_there(page: Page, gates: Gates, gate: str) -> None:
    """Answer, resume, wait, stop within 100 ms, and the history, all in one session."""
    assert (await page.send("hello")).text == "hello "
    async with page.sending(f"one gate:{gate} two") as first:
        await gates.reached(gate)
        waiting = asyncio.create_task(page.send("count"))
        async with page.resuming() as second:
            await second.until(lambda s: s.text)
            gates.open(gate)
            await second.until(lambda s: s.done)
        await first.until(lambda s: s.done)
    assert first.chunks == second.chunks
    assert (await waiting).text == "5 "
    async with page.sending("a until-stopped b") as stream:
        await gates.reached(page.chat)
        stopped_at = time.monotonic()
        await page.stop()
        await stream.until(lambda s: s.done)
        took = time.monotonic() - stopped_at
    assert stream.types[-1] == "abort"
    assert took < 1, "the signal is pushed: a renewal of the lease would take longer"
    kept = (await page.messages())["messages"]
    assert len(kept) == 8
    again = await page.send(None, trigger="regenerate-message", messageId=kept[1]["id"])
    assert again.text == "hello "
    [branch] = await page.branches()
    assert await page.branch(branch["id"]) == kept
